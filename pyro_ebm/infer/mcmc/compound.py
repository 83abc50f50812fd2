# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A compound kernel: several kernels take turns at the sites of one Pyro model."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ebm.infer.mcmc.blocks import Block, FunctionBlock, HamiltonianBlock, make_block
from pyro_ebm.infer.mcmc.even_layers import (
    EvenLayers,
    EvenLayersMessenger,
    join_sites,
    split_sites,
)
from pyro_ebm.infer.mcmc.site_density import initial_trace, latent_sites

__all__ = ["Gibbs"]


class Gibbs(MCMCKernel):
    r"""Gibbs sampling by blocks: kernels take turns, each at its sites given all others.

    .. code-block:: python

        Gibbs([(BlockGibbs(model), ["v"]), (DiscreteGibbs(model), ["z"]), (NUTS(model), None)])

    Every kernel is built with the whole model; here it sees the model conditioned on the present values
    of the sites of the other blocks, and leaves the distribution of its own given those invariant. A
    draw is one transition of every block in the order given. The kernels:

    * :class:`~pyro_ebm.infer.BlockGibbs` for a machine to which the rest adds a linear function of its
      states. One run of the model finds the field, another confirms that the rest is linear still;
    * :class:`~pyro_ebm.infer.MetropolisBlockGibbs`, :class:`~pyro_ebm.infer.GibbsWithGradients` and
      :class:`~pyro_ebm.infer.DiscreteLangevin` for a machine in any other model;
    * :class:`~pyro_ebm.infer.DiscreteGibbs` for small discrete sites, such as assignments in a plate;
    * :class:`pyro.infer.HMC` and :class:`pyro.infer.NUTS` for all continuous sites. Potential and gradient
      are computed anew before every transition; step size and mass matrix are adapted in the warm-up
      as without other blocks;
    * a function that takes a dictionary of the values of all latent sites, and returns new values of its
      own, drawn from their distribution given the others.

    Runs under :class:`pyro.infer.MCMC` and ``StreamingMCMC``. As with HMC alone, ``initial_params`` of the
    sites of HMC are in unconstrained space; those of a block may be left out. Numbers that
    a kernel returns as ``"energy"``, say, are ``"v.energy"`` in :meth:`diagnostics`. Draws of integer sites
    come back in floating point.

    The value of a site "v" that is a deep machine is its visible layer. Its further even layers are part
    of the state, under the names "v.h2", "v.h4" and so on (so that every update has an exact density),
    and of the dictionary that functions are given; a function that updates such a site returns them too.

    The support of a site must not depend on sites of other blocks: HMC reads it once, in ``setup``.

    **References**

    [1] *Markov chains for exploring posterior distributions*, Luke Tierney (1994)

    :param blocks: pairs of a kernel (or function) and the names of its sites; None, in one of the pairs,
        for all sites that no other pair names.
    :raises TypeError: if a block is neither a kernel that can take part nor a function.
    :raises ValueError: if a site is named twice, the kernels were built with different models or none,
        or a potential is compiled; in :meth:`setup`, if the names do not fit the latent sites of the
        model.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import MCMC, NUTS
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BlockGibbs, Gibbs
    >>> rbm = BernoulliRBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))
    >>> def model(x):
    ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    ...     v = pyro.sample("v", rbm)
    ...     pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=x)
    >>> kernel = Gibbs([(BlockGibbs(model), ["v"]), (NUTS(model), None)])
    >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=10, disable_progbar=True)
    >>> mcmc.run(torch.tensor([0.9, 1.1, 0.1, 1.0]))
    >>> {name: tuple(draws.shape) for name, draws in mcmc.get_samples().items()}
    {'scale': (10,), 'v': (10, 4)}
    """

    def __init__(self, blocks: Sequence[tuple[Any, Sequence[str] | None]]) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("blocks must hold at least one pair of a kernel and its sites")
        self._blocks = [make_block(update) for update, _ in blocks]
        self._claims = [_names(sites) for _, sites in blocks]
        self._check_claims()
        self.model = self._common_model()
        self._initial_params: dict[str, Tensor] | None = None
        self._params: dict[str, Tensor] = {}
        # The parts of the states of deep machines; to the blocks they are one tensor each.
        self._layers: list[EvenLayers] = []

    def _check_claims(self) -> None:
        claimed = [name for names in self._claims for name in names or ()]
        twice = sorted({name for name in claimed if claimed.count(name) > 1})
        if twice:
            raise ValueError(f"sites {twice} are named by more than one block")
        if self._claims.count(None) > 1:
            raise ValueError("at most one block may have None for its sites, the remaining ones")
        kernels = [id(block.update) for block in self._blocks]
        if len(set(kernels)) < len(kernels):
            raise ValueError("every block needs a kernel of its own, but one is used twice")

    def _common_model(self) -> Any:
        models = [b.update.model for b in self._blocks if not isinstance(b, FunctionBlock)]
        if not models:
            raise ValueError("at least one block must have a kernel, which knows the model")
        if any(model != models[0] for model in models):
            raise ValueError("all kernels must be built with the same model, but theirs differ")
        return models[0]

    # --- Pyro's interface ---------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        given = self._initial_params or {}
        self._release()
        messenger = EvenLayersMessenger()
        model = messenger(self.model)
        with torch.no_grad():
            trace = initial_trace(model, args, kwargs)
        self._layers = list(messenger.layers().values())
        given = join_sites(given, self._layers)
        nodes: dict[str, Any] = {name: trace.nodes[name] for name in latent_sites(trace)}
        self._assign(nodes)
        _check_start(given, list(nodes))
        values = {name: node["value"].detach() for name, node in nodes.items()}
        run = (model, args, kwargs)
        # HMC first: the others measure the model at its start, not at a draw from a wide prior.
        for block in sorted(self._blocks, key=lambda b: not isinstance(b, HamiltonianBlock)):
            own = {name: given[name] for name in block.sites if name in given}
            if own and len(own) < len(block.sites):
                raise ValueError(
                    f"initial_params must hold all of the sites {block.sites} of a block or none, "
                    f"got {sorted(own)}"
                )
            self._params.update(block.start(run, warmup_steps, values, own))

    def _assign(self, nodes: dict[str, Any]) -> None:
        """Give every block its sites."""
        claimed = [name for names in self._claims for name in names or ()]
        unknown = [name for name in claimed if name not in nodes]
        if unknown:
            raise ValueError(f"sites {unknown} are not latent in the model; it has {list(nodes)}")
        rest = [name for name in nodes if name not in claimed]
        if rest and None not in self._claims:
            raise ValueError(f"no block updates the latent sites {rest}")
        if not rest and None in self._claims:
            raise ValueError("a block has None for its sites, but no site of the model remains")
        for block, names in zip(self._blocks, self._claims, strict=True):
            block.sites = rest if names is None else list(names)
            block.layers = self._layers
            if isinstance(block, HamiltonianBlock):
                _check_continuous(block, nodes)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = join_sites(params, self._layers)
        values: dict[str, Tensor] = {}
        for block in self._blocks:
            values.update(block.values(state))
        for block in self._blocks:
            new = block.sample(state, values)
            state.update(new)
            values.update(block.values(new))
        return split_sites(state, self._layers)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The start of all sites, those of HMC in unconstrained space; known after :meth:`setup`."""
        return split_sites(self._params, self._layers)

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = {name: value.detach() for name, value in params.items()}

    @property
    def transforms(self) -> dict[str, Any] | None:
        """Transforms to unconstrained space of the sites of HMC, None if not known before :meth:`setup`."""
        merged: dict[str, Any] = {}
        for block in self._blocks:
            if isinstance(block, HamiltonianBlock):
                if block.transforms is None:
                    return None
                merged.update(block.transforms)
        return merged

    def cleanup(self) -> None:
        self._initial_params = None
        self._release()

    def _release(self) -> None:
        self._params = {}
        for block in self._blocks:
            block.cleanup()

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of all kernels after warm-up, by the names of their sites; divergences of all of
        them together."""
        divergences: set[int] = set()
        numbers: dict[str, Any] = {}
        for block in self._blocks:
            for name, value in block.diagnostics().items():
                if name == "divergences":
                    divergences.update(value)
                else:
                    numbers[f"{block.label}.{name}"] = value
        return {"divergences": sorted(divergences)} | numbers

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict(
            (f"{block.label}.{name}", text)
            for block in self._blocks
            for name, text in block.logging().items()
        )


def _names(sites: Sequence[str] | None) -> tuple[str, ...] | None:
    if sites is None:
        return None
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"sites must be a list of names or None, got {sites!r}")
    return names


def _check_continuous(block: Block, nodes: dict[str, Any]) -> None:
    discrete = [name for name in block.sites if nodes[name]["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"{type(block.update).__name__} cannot update the discrete sites {discrete}; name them in a "
            "block of another kernel, such as DiscreteGibbs or BlockGibbs"
        )


def _check_start(given: dict[str, Tensor], latent: list[str]) -> None:
    unknown = sorted(set(given) - set(latent))
    if unknown:
        raise ValueError(f"initial_params holds {unknown}, but the latent sites are {latent}")
