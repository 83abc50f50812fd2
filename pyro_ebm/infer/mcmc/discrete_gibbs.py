# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Exact conditional draws of small discrete sites of a Pyro model."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Generator, Tensor

from pyro_ebm.infer.mcmc.site_density import SiteDensity, initial_trace, latent_sites
from pyro_ebm.ops.random import categorical_from_logits

__all__ = ["DiscreteGibbs"]


class DiscreteGibbs(MCMCKernel):
    r"""Gibbs sampling of the discrete sites of a model, such as the assignments of a mixture.

    Every site in turn is drawn from its distribution given all others, by the log-density of the model in
    each of its K states. All elements of a site's batch are drawn at once, from as many
    distributions; they must be independent given the rest, as assignments of rows in a plate are. A
    draw costs K runs of the model for each site, or one if the model can be run with chains, see
    :class:`~pyro_ebm.infer.mcmc.site_density.SiteDensity`.

    Draws are of floating-point type, as Pyro's drivers and statistics need; the model sees the type that
    the site's distribution draws.

    It runs under :class:`pyro.infer.MCMC` and within :class:`~pyro_ebm.infer.Gibbs`.

    :param model: a Pyro model whose sites that are not observed are discrete, of event dimension 0 and
        with ``enumerate_support``: Bernoulli, Categorical, Binomial and the like.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises TypeError: if the model is not callable.
    :raises ValueError: in :meth:`setup`, if the model is not of that kind.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> from pyro_ebm.infer import DiscreteGibbs
    >>> def model(y):
    ...     with pyro.plate("rows", len(y)):
    ...         z = pyro.sample("z", dist.Categorical(torch.ones(3)))
    ...         pyro.sample("y", dist.Normal(4.0 * z, 1.0), obs=y)
    >>> mcmc = MCMC(DiscreteGibbs(model), num_samples=20, warmup_steps=0, disable_progbar=True)
    >>> mcmc.run(torch.tensor([0.0, 8.0, 8.0]))
    >>> mcmc.get_samples()["z"].median(0).values
    tensor([0., 2., 2.])
    """

    def __init__(self, model: Callable[..., Any], *, generator: Generator | None = None) -> None:
        if not callable(model):
            raise TypeError(f"model must be a Pyro model, got {type(model).__name__}")
        super().__init__()
        self.model = model
        self.generator = generator
        self.transforms: dict[str, Any] = {}
        self._initial_params: dict[str, Tensor] | None = None
        self._reset()

    def _reset(self) -> None:
        # The sites' present values in the model's type, which their densities are conditioned on.
        self._values: dict[str, Tensor] = {}
        self._densities: list[SiteDensity] = []
        self._states: dict[str, Tensor] = {}

    # --- Pyro's interface ---------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._reset()
        with torch.no_grad():
            trace = initial_trace(self.model, args, kwargs)
        names = latent_sites(trace)
        for name in names:
            node: Any = trace.nodes[name]
            self._states[name] = _enumerate(name, node["fn"])
            self._values[name] = node["value"]
        if not names:
            raise ValueError(
                "DiscreteGibbs needs a model with discrete sites that are not observed"
            )
        if self._initial_params is not None:
            self._read(self._initial_params)
        conditioned = poutine.condition(self.model, data=self._values)
        self._densities = [SiteDensity(conditioned, name, args, kwargs) for name in names]

    def refresh(self) -> None:
        """Nothing is kept of the model from one draw to the next."""

    def cleanup(self) -> None:
        self._reset()

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The start: what was set, otherwise draws from the prior."""
        return {name: as_float(value) for name, value in self._values.items()}

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = {name: value.detach() for name, value in params.items()}

    def _read(self, params: dict[str, Tensor]) -> None:
        """Take values of the sites, of any type."""
        if {n: p.shape for n, p in params.items()} != {n: v.shape for n, v in self._values.items()}:
            got = {name: tuple(p.shape) for name, p in params.items()}
            expected = {name: tuple(v.shape) for name, v in self._values.items()}
            raise ValueError(f"params must have the shapes {expected}, got {got}")
        for name, value in params.items():
            self._values[name] = value.to(self._values[name].dtype)

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self._read(params)
        for density in self._densities:
            self._values[density.name] = self._draw(density)
        return self.initial_params

    def _draw(self, density: SiteDensity) -> Tensor:
        states = self._states[density.name]
        values = states.reshape((-1,) + (1,) * len(density.rows)).expand(-1, *density.rows)
        logits = density.log_joint(values).movedim(0, -1)
        return states[categorical_from_logits(logits, self.generator).argmax(-1)]

    def diagnostics(self) -> dict[str, Any]:
        return {"divergences": []}


def as_float(value: Tensor) -> Tensor:
    """The value in a type that drivers can join with those of other sites."""
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def _enumerate(name: str, fn: Any) -> Tensor:
    """States of a site, shape ``(K,)``."""
    if fn.event_dim or not fn.has_enumerate_support:
        raise ValueError(
            f"DiscreteGibbs cannot draw site {name!r} of {type(fn).__name__}: it needs discrete sites of "
            "event dimension 0 with enumerate_support"
        )
    states: Tensor = fn.enumerate_support(expand=False)
    return states.flatten()
