# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of a model and its guide with many particles, as log-weights by row of a plate."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm.distributions import DBM, EnergyBased
from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.variational.given_log_partition import (
    GivenLogPartition,
    MachineCollector,
    SiteNormalizer,
)

__all__ = ["ParticleRuns"]

_PARTICLES = "_pyro_ebm_particles"


class ParticleRuns:
    """A model and a guide that can be run with particles.

    The first run checks that they go together and finds the machines whose log Z is missing.

    :param model: the model.
    :param guide: the guide.
    :param args: arguments of both.
    :param kwargs: keyword arguments of both.
    :param str plate: name of the plate whose elements are the rows; the whole data is one row if None.
    :param bool vectorize: whether particles are a further plate on the left, or one run each.
    :raises ValueError: for what :func:`~pyro_ebm.infer.importance_log_likelihood` refuses.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        plate: str | None,
        vectorize: bool,
    ) -> None:
        self._model, self._guide = model, guide
        self._args, self._kwargs = args, dict(kwargs)
        self._plate, self._vectorize = plate, vectorize
        collector = MachineCollector()
        guide_trace, model_trace = self._traces(collector, None)
        _check_match(guide_trace, model_trace)
        nodes = [*_counted(guide_trace), *_counted(model_trace)]
        self._nesting = max((_nesting(node) for node in nodes), default=0)
        self._frame = None if plate is None else _row_frame(plate, nodes)
        #: The machines whose log Z is missing, by site.
        self.machines: dict[str, EnergyBased] = collector.machines
        #: Whether there is no latent variable.
        self.is_observed = not _counted(guide_trace)
        #: Whether some site's log-probability is a bound.
        self.has_bound = any(_is_bound(node) for node in _counted(model_trace))
        self._messenger: Messenger = collector

    def attach(self, normalizers: Mapping[str, SiteNormalizer]) -> None:
        """Give the machines their log Z."""
        self._messenger = GivenLogPartition(normalizers)

    @torch.no_grad()
    def log_weights(self, number: int) -> Tensor:
        """Log-weights of some particles, float64, shape ``(number, rows)``."""
        if self._vectorize:
            return self._log_weights(number)
        return torch.cat([self._log_weights(None) for _ in range(number)])

    def counts(self, normalizers: Mapping[str, SiteNormalizer]) -> dict[str, Tensor]:
        """By how much the sum of the rows' log-probabilities falls for a nat of each log Z, by site."""
        with torch.no_grad():
            guide_trace = poutine.trace(self._guide).get_trace(*self._args, **self._kwargs)
        with torch.enable_grad():
            model_trace = self._model_trace(guide_trace, self._messenger, None)
            total = sum(
                (
                    self._by_row(node, 1).sum()
                    for node in _counted(model_trace)
                    if node["name"] in normalizers
                ),
                start=torch.zeros((), dtype=torch.float64),
            )
        values = [own.value for own in normalizers.values()]
        if not total.requires_grad:  # all of the machines depend on what was drawn
            return {
                name: torch.zeros_like(value)
                for name, value in zip(normalizers, values, strict=True)
            }
        gradients = torch.autograd.grad(total, values, allow_unused=True, materialize_grads=True)
        return {name: -gradient for name, gradient in zip(normalizers, gradients, strict=True)}

    # --- runs ---------------------------------------------------------------------------------

    def _traces(
        self, messenger: Messenger, number: int | None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide = self._many(self._guide, number)
        guide_trace = poutine.trace(guide).get_trace(*self._args, **self._kwargs)
        return guide_trace, self._model_trace(guide_trace, messenger, number)

    def _model_trace(
        self, guide_trace: poutine.Trace, messenger: Messenger, number: int | None
    ) -> poutine.Trace:
        def normalized(*args: Any, **kwargs: Any) -> Any:
            # Within the replay, which puts what the guide says of a site in the place of what the model says.
            with messenger:
                return self._model(*args, **kwargs)

        replayed = poutine.replay(self._many(normalized, number), trace=guide_trace)
        return poutine.trace(replayed).get_trace(*self._args, **self._kwargs)

    def _many(self, function: Callable[..., Any], number: int | None) -> Callable[..., Any]:
        if number is None:
            return function

        def many(*args: Any, **kwargs: Any) -> Any:
            with pyro.plate(_PARTICLES, number, dim=-1 - self._nesting):
                return function(*args, **kwargs)

        return many

    def _log_weights(self, number: int | None) -> Tensor:
        guide_trace, model_trace = self._traces(self._messenger, number)
        total: Any = 0.0
        for sign, trace in ((1.0, model_trace), (-1.0, guide_trace)):
            for node in _counted(trace):
                total = total + sign * self._by_row(node, number or 1)
        rows = 1 if self._frame is None else self._frame.size
        return torch.as_tensor(total, dtype=torch.float64).expand(number or 1, rows)

    def _by_row(self, node: Any, number: int) -> Tensor:
        """Log-probability of a site by particle and row, without the scale of a subsample of rows."""
        fn = node["fn"]
        log_prob = fn.log_prob(node["value"]).double()
        log_prob = pyro.distributions.util.scale_and_mask(log_prob, node["scale"], node["mask"])
        axes = self._nesting + 1
        log_prob = log_prob.reshape((1,) * (axes - log_prob.dim()) + log_prob.shape)
        kept = {0} if self._frame is None else {0, axes + self._frame.dim}
        summed = [axis for axis in range(axes) if axis not in kept]
        rows = 1 if self._frame is None else self._frame.size
        log_prob = (log_prob.sum(summed) if summed else log_prob).reshape(-1, rows)
        if self._frame is not None and self._frame.full_size not in (None, rows):
            log_prob = log_prob * (rows / self._frame.full_size)
        return log_prob.expand(number, rows)


def _counted(trace: poutine.Trace) -> list[Any]:
    """The sites of a trace that have a log-probability: no plates, no deterministic ones."""
    return [node for node in _nodes(trace) if _has_density(node)]


def _nodes(trace: poutine.Trace) -> Iterator[Any]:
    return (node for node in trace.nodes.values() if node["type"] == "sample")


def _is_plate(node: Any) -> bool:
    return type(node["fn"]).__name__ == "_Subsample"


def _has_density(node: Any) -> bool:
    masked = isinstance(node["fn"], MaskedDistribution) and node["fn"]._mask is False
    return not (_is_plate(node) or masked or node["mask"] is False)


def _is_bound(node: Any) -> bool:
    machine = wrapped_machine(node["fn"])
    return isinstance(machine, DBM) and machine.depth > 1


def _nesting(node: Any) -> int:
    dims = [-frame.dim for frame in node["cond_indep_stack"] if frame.vectorized]
    return max([len(node["fn"].batch_shape), *dims])


def _row_frame(plate: str, nodes: list[Any]) -> Any:
    """The frame of the plate of rows, in which all sites must be."""
    frames = [
        {frame.name: frame for frame in node["cond_indep_stack"] if frame.vectorized}
        for node in nodes
    ]
    outside = sorted(
        {node["name"] for node, own in zip(nodes, frames, strict=True) if plate not in own}
    )
    if not nodes or len(outside) == len({node["name"] for node in nodes}):
        known = sorted({name for own in frames for name in own})
        raise ValueError(f"plate must name a vectorised plate of the model, {known}, got {plate!r}")
    if outside:
        raise ValueError(
            f"the sites {outside} are outside of plate {plate!r}, whose rows then have no likelihoods of "
            "their own: condition the model on them, or give plate=None for the likelihood of the whole"
        )
    return frames[0][plate]


def _check_match(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a guide that is none of this model, and what would make weights wrong."""
    for trace in (guide_trace, model_trace):
        for node in _nodes(trace):
            if _is_plate(node) and (node["fn"].subsample_size or node["fn"].size) < node["fn"].size:
                raise ValueError(
                    f"plate {node['name']!r} takes a random subsample, so that particles would be "
                    "of different rows; give them, pyro.plate(..., subsample=rows), in an autoguide by "
                    "create_plates"
                )
    of_guide = {
        n["name"]: n for n in _nodes(guide_trace) if not _is_plate(n) and not n["is_observed"]
    }
    of_model = {n["name"]: n for n in _nodes(model_trace) if not _is_plate(n)}
    missing = [
        name
        for name, n in of_model.items()
        if not n["is_observed"] and name not in of_guide and _has_density(n)
    ]
    auxiliary = [name for name, n in of_guide.items() if n["infer"].get("is_auxiliary")]
    unknown = [name for name in of_guide if name not in of_model and name not in auxiliary]
    if missing or unknown:
        raise ValueError(
            f"guide and model must have the same latent sites; the guide lacks {missing} and has {unknown}, "
            "which the model has not"
        )
    for name, node in of_guide.items():
        machine = wrapped_machine(node["fn"])
        if machine is not None and machine.log_partition is None:
            raise ValueError(
                f"site {name!r} of the guide is a machine without log Z; attach it by normalize"
            )
