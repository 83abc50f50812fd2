# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The machine that has given moments: maximum likelihood by enumeration or by persistent chains."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.paths.canonical import with_bias
from pyro_ebm.infer.paths.moment_statistics import Moments, enumerated_moments, moments_of
from pyro_ebm.ops.linear import affine, apply_weight

__all__ = ["ChainFit", "fit_by_enumeration"]

#: Steps of the exact fit; it stops before where all moments agree to this.
_MAX_STEPS, _TOLERANCE = 1000, 1e-7


def fit_by_enumeration(start: RBM, target: Moments) -> RBM:
    """Maximise the likelihood of given moments, a concave function, by L-BFGS with its exact gradient.

    :param RBM start: a machine without offsets, one layer of which is finite; precisions stay.
    :param Moments target: the moments to match.
    """
    exact = start.to(dtype=torch.float64)
    natural = [
        p.detach().clone(memory_format=torch.contiguous_format)
        for p in (exact.visible.natural_bias, exact.hidden.natural_bias, exact.weight)
    ]
    optimiser = torch.optim.LBFGS(
        natural,
        max_iter=_MAX_STEPS,
        max_eval=2 * _MAX_STEPS,
        history_size=20,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        moments, log_z = enumerated_moments(_with_natural(exact, *natural))
        pairs = zip(
            natural,
            (moments.visible, moments.hidden, moments.product),
            (target.visible, target.hidden, target.product),
            strict=True,
        )
        for parameter, model, wanted in pairs:
            parameter.grad = (model - wanted).contiguous()
        return float((log_z - target.dot(*natural)).sum())

    optimiser.step(closure)
    visible_bias, hidden_bias, weight = (p.detach().to(start.weight.dtype) for p in natural)
    return _with_natural(start, visible_bias, hidden_bias, weight)


@dataclass
class ChainFit:
    r"""Stochastic gradient of the likelihood of given moments, with chains that go on from fit to fit.

    The gradient is that of centred units, whose offsets are the wanted means: it does not depend on
    which state of a bit is called zero, and biases and weights disturb each other less. Hidden units
    enter by their conditional means. The rate falls to zero, so that the noise averages out; it is in
    units in which a free bit has variance 1/4.

    :param Tensor v: the chains' visible states, shape ``(chains,) + batch_shape + (V,)``.
    :param int num_updates: steps of a fit, one block Gibbs sweep each.
    :param float learning_rate: rate of the first step.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    v: Tensor
    num_updates: int
    learning_rate: float
    generator: Generator | None = None

    @torch.no_grad()
    def fit(self, start: RBM, target: Moments) -> RBM:
        """Fit a machine without offsets; precisions stay.

        :param RBM start: where the parameters start.
        :param Moments target: the moments to match.
        """
        visible, hidden, generator = start.visible, start.hidden, self.generator
        bias, pull = visible.natural_bias.clone(), hidden.natural_bias.clone()
        weight = start.weight.clone()
        wanted = target.to(weight)
        scale_v, scale_h = self._scale(visible), self._scale(hidden)
        scale = scale_v.unsqueeze(-1) * scale_h.unsqueeze(-2)
        theta = affine(self.v, weight, pull)
        for step in range(self.num_updates):
            rate = self.learning_rate * (1.0 - step / self.num_updates)
            h = hidden.natural_sample(theta, generator)
            self.v = visible.natural_sample(affine(h, weight.mT, bias), generator)
            model = moments_of(self.v, hidden.natural_mean(affine(self.v, weight, pull)))
            error_v, error_h = wanted.visible - model.visible, wanted.hidden - model.hidden
            change = wanted.product - model.product
            change -= wanted.visible.unsqueeze(-1) * error_h.unsqueeze(-2)
            change -= error_v.unsqueeze(-1) * wanted.hidden.unsqueeze(-2)
            change *= rate * scale
            bias += rate * scale_v * error_v - apply_weight(wanted.hidden, change.mT)
            pull += rate * scale_h * error_h - apply_weight(wanted.visible, change)
            weight += change
            theta = affine(self.v, weight, pull)
        return _with_natural(start, bias, pull, weight)

    def _scale(self, layer: Unit) -> Tensor:
        """A quarter of the inverse variance of every entry of the layer without a field."""
        theta = layer.neutral().natural_bias
        draws = layer.natural_sample(theta.expand(1024, *theta.shape), self.generator)
        return 0.25 / draws.var(0).clamp(min=1e-6)


def _with_natural(like: RBM, visible_bias: Tensor, hidden_bias: Tensor, weight: Tensor) -> RBM:
    """A machine of other natural biases and weight; families and precisions stay."""
    batch = like.parameter_batch_shape
    visible = with_bias(like.visible, visible_bias, batch)
    hidden = with_bias(like.hidden, hidden_bias, batch)
    return RBM(visible, hidden, weight, num_gibbs_steps=like.num_gibbs_steps, validate_args=False)
