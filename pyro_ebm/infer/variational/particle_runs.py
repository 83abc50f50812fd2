# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of a model and its guide with many particles, as log-weights by row of a plate."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm.distributions import DBM, EnergyBased
from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.mcmc.site_density import plate_nesting
from pyro_ebm.infer.variational.given_log_partition import (
    GivenLogPartition,
    MachineCollector,
    SiteNormalizer,
)
from pyro_ebm.infer.variational.guide_match import (
    check_match,
    check_point_masses,
    check_scales,
    guide_terms,
    model_terms,
    row_frame,
    share_masks,
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
        check_match(guide_trace, model_trace)
        check_point_masses(self._guide_trace, guide_trace, model_trace)
        nodes = [*guide_terms(guide_trace), *model_terms(model_trace)]
        self._nesting = max((plate_nesting(node) for node in nodes), default=0)
        self._frame = None if plate is None else row_frame(plate, nodes)
        #: The machines whose log Z is missing, by site.
        self.machines: dict[str, EnergyBased] = collector.machines
        #: Whether there is no latent variable.
        self.is_observed = not guide_terms(guide_trace)
        if not self.is_observed:
            check_scales(nodes, self._frame)
        #: Whether some site's log-probability is a bound.
        self.has_bound = any(_is_bound(node) for node in model_terms(model_trace))
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
            guide_trace = self._guide_trace()
        with torch.enable_grad():
            model_trace = self._model_trace(guide_trace, self._messenger, None)
            total = sum(
                (
                    self._by_row(node, 1).sum()
                    for node in model_terms(model_trace)
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
        guide_trace = self._guide_trace(lambda guide: self._many(guide, number))
        model_trace = self._model_trace(guide_trace, messenger, number)
        share_masks(guide_trace, model_trace)
        return guide_trace, model_trace

    def _guide_trace(self, handler: Callable[[Any], Any] = lambda guide: guide) -> poutine.Trace:
        return poutine.trace(handler(self._guide)).get_trace(*self._args, **self._kwargs)

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
        for sign, nodes in ((1.0, model_terms(model_trace)), (-1.0, guide_terms(guide_trace))):
            for node in nodes:
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


def _is_bound(node: Any) -> bool:
    machine = wrapped_machine(node["fn"])
    return isinstance(machine, DBM) and machine.depth > 1
