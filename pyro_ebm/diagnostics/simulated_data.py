# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters and data drawn together from a Pyro model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.sampling import exact_side
from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.bayesian.chain_layout import ChainLayout
from pyro_ebm.infer.mcmc.site_density import is_plate, plate_nesting

__all__ = ["Simulation", "Simulator"]


@dataclass(frozen=True)
class Simulation:
    """Values of a run of a model, or of several with a leading axis.

    :param parameters: those of the latent sites.
    :param data: those of the observed ones.
    """

    parameters: dict[str, Tensor]
    data: dict[str, Tensor]

    def __getitem__(self, index: int) -> "Simulation":
        return Simulation(
            {name: value[index] for name, value in self.parameters.items()},
            {name: value[index] for name, value in self.data.items()},
        )


class Simulator:
    """Draws from the joint distribution of a model, whether its data are given or not.

    :param model: the model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param observed: sites of the data; those that the model observes if None.
    :raises ValueError: if a site has no distribution to draw from exactly or is scaled, or there are no
        parameters or data.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observed: Sequence[str] | None = None,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self._free = poutine.uncondition(model)
        nodes = self._nodes(self._free)
        for name, node in nodes.items():
            _check_site(name, node)
        names = [n for n, node in nodes.items() if node["infer"].get("was_observed")]
        self.observed = names if observed is None else list(observed)
        unknown = [name for name in self.observed if name not in nodes]
        self.latent = [name for name in nodes if name not in self.observed]
        if unknown or not self.observed or not self.latent:
            raise ValueError(
                f"the model must have latent and observed sites; observed are {self.observed}, the sites of "
                f"the model {list(nodes)}"
            )
        self._shapes = {name: node["value"].shape for name, node in nodes.items()}
        self._nesting = max(plate_nesting(node) for node in nodes.values())

    def _nodes(self, model: Callable[..., Any]) -> dict[str, Any]:
        """Sites of a run that have values of their own."""
        with torch.no_grad():
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
        # Pyro's annotations of a node are narrower than what sample sites hold.
        nodes: dict[str, Any] = dict(trace.nodes)
        return {
            name: node
            for name, node in nodes.items()
            if node["type"] == "sample"
            and not is_plate(node)
            and not node["infer"].get("_deterministic")
        }

    def draw(self) -> Simulation:
        """One draw of parameters and data."""
        values = {name: node["value"].detach() for name, node in self._nodes(self._free).items()}
        return self._split(values)

    def draw_together(self, number: int) -> tuple[Simulation, dict[str, Tensor]]:
        """Many draws in one run of the model, with one more plate on its left.

        :returns: the draws with a leading axis, and the data in the shape that the model in the plate has.
        """
        layout = ChainLayout(Size((number,)), self._nesting)
        values = {
            n: node["value"].detach() for n, node in self._nodes(layout.wrap(self._free)).items()
        }
        for name, value in values.items():
            if value.numel() != number * self._shapes[name].numel():
                raise ValueError(
                    f"site {name!r} has the shape {tuple(value.shape)} in a plate of {number} simulations "
                    f"and {tuple(self._shapes[name])} alone: write .to_event() for parameters that are "
                    "arrays, or take vectorized=False"
                )
        flat = {n: value.reshape((number, *self._shapes[n])) for n, value in values.items()}
        return self._split(flat), {name: values[name] for name in self.observed}

    def _split(self, values: dict[str, Tensor]) -> Simulation:
        return Simulation(
            {name: values[name] for name in self.latent},
            {name: values[name] for name in self.observed},
        )

    def conditioned(self, data: Mapping[str, Tensor]) -> Callable[..., Any]:
        """The model given simulated data."""
        conditioned: Callable[..., Any] = poutine.condition(self.model, data=dict(data))
        return conditioned


def _check_site(name: str, node: Any) -> None:
    """Refuse a site whose draws are not from the density that it has in the posterior."""
    fn, scale = node["fn"], node["scale"]
    if isinstance(fn, Unit):
        raise ValueError(f"site {name!r} is a factor, which cannot be simulated")
    if isinstance(scale, Tensor) or scale != 1.0:
        raise ValueError(
            f"the log-density of site {name!r} is scaled by {scale}, which a draw of it is not"
        )
    machine = wrapped_machine(fn)
    if isinstance(machine, DBM):
        machine = machine.bipartite()
    if isinstance(machine, RBM) and exact_side(machine) is None:
        raise ValueError(
            f"the machine at site {name!r} has no layer that can be enumerated, so that its draws, a finite "
            "run of block Gibbs, are not exact, and a correct sampler would fail"
        )
