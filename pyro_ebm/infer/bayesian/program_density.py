# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The density of a program's latent sites in unconstrained space, but for log Z of its machines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Size, Tensor
from torch.distributions import biject_to

from pyro_ebm.distributions import UnnormalizedGradientError
from pyro_ebm.infer.bayesian.chain_layout import ChainLayout
from pyro_ebm.infer.bayesian.machine_factor import (
    MachineFactor,
    check_attached,
    machine_factor,
    machine_within,
)
from pyro_ebm.infer.mcmc.site_density import (
    initial_trace,
    is_plate,
    latent_sites,
    plate_nesting,
)

__all__ = ["Point", "ProgramDensity"]

#: How far a run of the model is from another to see what depends on what, in unconstrained space.
_SHIFT = 0.3
_KERNELS = "Exchange and PseudoMarginal"


@dataclass(frozen=True)
class Point:
    r"""Values of all latent sites, and what a run of the program says about them.

    :param Tensor z: unconstrained values, shape ``chain_shape + (d,)``.
    :param Tensor log_density: log-density in unconstrained space in which machines count
        :math:`-F(v)`, float64, shape ``chain_shape``; minus infinity where it is not a number, or a machine
        has no finite Z.
    :param factors: the unnormalised machines by site.
    """

    z: Tensor
    log_density: Tensor
    factors: dict[str, MachineFactor]


@dataclass(frozen=True)
class _Site:
    """A latent site: its shapes without chains and the way to unconstrained space."""

    name: str
    batch: Size
    shape: Size
    unconstrained: Size
    support: Any
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return self.unconstrained.numel()


class ProgramDensity:
    """Joint log-density of the continuous latent sites of a model as a function of one flat vector.

    :param model: the model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param Size chain_shape: chains that one run of the model evaluates.
    :param init_strategy: where a chain starts, as for :class:`pyro.infer.NUTS`.
    :raises ValueError: if there is no latent site, one is discrete or has a support that depends on others,
        or the model subsamples; if a log Z is attached that does not follow the parameters.
    :raises UnnormalizedGradientError: if a machine without log Z is where no kernel can supply it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        chain_shape: Size,
        init_strategy: Callable[[Any], Tensor],
    ) -> None:
        self._args, self._kwargs = args, dict(kwargs)
        started = InitMessenger(init_strategy)(model)
        with torch.no_grad():
            trace = initial_trace(started, args, self._kwargs)
        nodes: dict[str, Any] = dict(trace.nodes)
        self.sites = [_site(name, nodes[name]) for name in latent_sites(trace)]
        if not self.sites:
            raise ValueError("the model has no latent site whose posterior could be sampled")
        self.layout = ChainLayout(chain_shape, max(plate_nesting(node) for node in nodes.values()))
        self._model = self.layout.wrap(model)
        # Sites of the machines, known from the first evaluation.
        self._names: set[str] | None = None
        # Outside of the plate of the chains: it draws from what the plate has expanded.
        self._started = InitMessenger(init_strategy)(self._model)
        values = {site.name: nodes[site.name]["value"] for site in self.sites}
        self._check_supports(model, values)
        self._check_gradients(model, values)

    @torch.no_grad()
    def _check_supports(self, model: Callable[..., Any], values: dict[str, Tensor]) -> None:
        """One run elsewhere, to see whether the way to unconstrained space is the same there."""
        free = {s.name: biject_to(s.support).inv(values[s.name]) + _SHIFT for s in self.sites}
        moved = {s.name: biject_to(s.support)(free[s.name]) for s in self.sites}
        conditioned = poutine.condition(model, data=moved)
        trace = poutine.trace(conditioned).get_trace(*self._args, **self._kwargs)
        for site in self.sites:
            fn: Any = trace.nodes[site.name]["fn"] if site.name in trace.nodes else None
            if fn is None or not _is_same(biject_to(fn.support)(free[site.name]), moved[site.name]):
                raise ValueError(
                    f"site {site.name!r} has not the same support everywhere: it depends on other latent "
                    "sites, as that of Uniform(0, a). Write it with a fixed support and transform the value, "
                    "as in b = a * pyro.sample('share', dist.Uniform(0, 1))"
                )

    def _check_gradients(self, model: Callable[..., Any], values: dict[str, Tensor]) -> None:
        """One run with gradients, to see what follows the parameters."""
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        conditioned = poutine.condition(model, data=leaves)
        try:
            with torch.enable_grad():
                trace = poutine.trace(conditioned).get_trace(*self._args, **self._kwargs)
                trace.compute_log_prob(_has_no_machine)
        except UnnormalizedGradientError as error:
            raise UnnormalizedGradientError(
                f"a machine of the model is hidden from {_KERNELS}, in a factor or inside of a distribution "
                f"such as a mixture, where log Z cannot be supplied: {error}"
            ) from error
        except RuntimeError:
            return  # a model that leaves torch has no gradients, and needs none here
        for name, node in trace.nodes.items():
            if node["type"] == "sample":
                check_attached(name, node)

    # --- between values and the flat vector ---------------------------------------------------

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the sites, shape ``chain_shape + shape of the site``."""
        chains = self.layout.chain_shape
        return {
            site.name: value.reshape(chains + site.shape) for site, value, _ in self._constrained(z)
        }

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat vector of values, the inverse of :meth:`values`."""
        chains = self.layout.chain_shape
        parts = []
        for site in self.sites:
            lifted = self.layout.lift(values[site.name].to(site.dtype), site.batch)
            part = biject_to(site.support).inv(lifted)
            parts.append(part.reshape(*chains, site.size))
        return torch.cat(parts, -1).detach()

    def _constrained(self, z: Tensor) -> list[tuple[_Site, Tensor, Tensor]]:
        """Every site with its lifted value and the log-determinant of the way there."""
        result = []
        parts = z.split([site.size for site in self.sites], -1)
        for site, part in zip(self.sites, parts, strict=True):
            free = part.reshape(self.layout.chain_shape + site.unconstrained).to(site.dtype)
            free = self.layout.lift(free, site.batch)
            transform = biject_to(site.support)
            value = transform(free)
            result.append((site, value, transform.log_abs_det_jacobian(free, value)))
        return result

    # --- runs of the model --------------------------------------------------------------------

    @torch.no_grad()
    def start(self) -> dict[str, Tensor]:
        """Values where chains start."""
        trace = poutine.trace(self._started).get_trace(*self._args, **self._kwargs)
        chains = self.layout.chain_shape
        nodes: dict[str, Any] = dict(trace.nodes)
        return {
            s.name: nodes[s.name]["value"].detach().reshape(chains + s.shape) for s in self.sites
        }

    @torch.no_grad()
    def evaluate(self, z: Tensor) -> Point:
        """Run the model at a flat vector of every chain."""
        total = torch.zeros(self.layout.chain_shape, dtype=torch.float64, device=z.device)
        values = {}
        for site, value, log_det in self._constrained(z):
            values[site.name] = value
            total = total + self.layout.total(log_det)
        conditioned = poutine.condition(self._model, data=values)
        trace = poutine.trace(conditioned).get_trace(*self._args, **self._kwargs)
        trace.compute_log_prob()
        factors = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or is_plate(node):
                continue
            total = total + self.layout.total(node["log_prob"])
            factor = machine_factor(name, node)
            if factor is None:
                continue
            factors[name] = factor
            known = factor.is_normalizable
            if known is not None:
                total = total + self.layout.total(torch.where(known, 0.0, -torch.inf))
        self._check_names(set(factors))
        total = torch.where(total.isnan(), -torch.inf, total)
        return Point(z, total, factors)

    def check_chains(self, point: Point) -> None:
        """Every chain must have a log-density of its own, on which no other chain has any influence.

        :raises ValueError: if moving one half of the chains changes the log-density of the other half.
        """
        if self.layout.num_chains < 2:
            return
        odd = torch.arange(self.layout.num_chains, device=point.z.device) % 2 == 1
        shift = _SHIFT * torch.linspace(1.0, 2.0, point.z.shape[-1]).to(point.z)
        for moved in (odd, ~odd):
            other = self.evaluate(torch.where(moved.unsqueeze(-1), point.z + shift, point.z))
            if not _is_same(other.log_density[~moved], point.log_density[~moved]):
                raise ValueError(
                    "the log-density of a chain depends on the values of other chains, which the model takes "
                    "for rows or units: write .to_event() for parameters that are arrays, give what is "
                    "computed from a scalar its axes on the right (scale[..., None, None]), and count rows "
                    "from the right; or run one chain after the other with pyro.infer.MCMC"
                )

    def _check_names(self, names: set[str]) -> None:
        """Machines must not come and go with the parameters."""
        if self._names is not None and names != self._names:
            raise ValueError(
                f"the machines of the model differ from run to run: at the sites {sorted(self._names)} and "
                f"{sorted(names)}"
            )
        self._names = names


def _has_no_machine(name: str, node: Any) -> bool:
    """Whether the log-density of a site is what its distribution says, without a machine that is known."""
    uncounted = node["mask"] is False or is_plate(node)
    return not uncounted and machine_within(name, node)[0] is None


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two results of the same computation are equal but for rounding."""
    return a.shape == b.shape and bool(
        torch.isclose(a, b, rtol=1e-5, atol=1e-9, equal_nan=True).all()
    )


def _site(name: str, node: Any) -> _Site:
    fn, value = node["fn"], node["value"]
    if fn.support.is_discrete:
        raise ValueError(
            f"site {name!r} is discrete; the kernel samples continuous sites. Name it in a block of "
            "another kernel, as in Gibbs([(BlockGibbs(model), [...]), (Exchange(model), None)])"
        )
    batch = value.shape[: value.dim() - fn.event_dim]
    free = biject_to(fn.support).inv(value)
    return _Site(name, Size(batch), value.shape, free.shape, fn.support, value.dtype)
