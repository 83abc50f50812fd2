# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The stretch of a path between two machines, and a machine on it that is ready to be swept."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import affine

__all__ = ["Level", "Segment"]


class Level:
    """One machine of a path, without its constant: two layers, their natural biases, a weight.

    :param Unit visible: a visible layer of the right base measure; its bias is not read.
    :param Unit hidden: the same for the hidden layer.
    :param Tensor visible_bias: natural bias of the visible layer.
    :param Tensor hidden_bias: natural bias of the hidden layer.
    :param Tensor weight: the weight.
    """

    def __init__(
        self,
        visible: Unit,
        hidden: Unit,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        weight: Tensor,
    ) -> None:
        self.visible, self.hidden = visible, hidden
        self.visible_bias, self.hidden_bias = visible_bias, hidden_bias
        self.weight, self._weight_t = weight, weight.mT

    def hidden_theta(self, v: Tensor) -> Tensor:
        """Natural parameter of the hidden layer given visible states."""
        return affine(v, self.weight, self.hidden_bias)

    def move(self, theta: Tensor, generator: Generator | None) -> Tensor:
        """Visible states after one sweep from the hidden natural parameter of the present ones."""
        h = self.hidden.natural_sample(theta, generator)
        field = affine(h, self._weight_t, self.visible_bias)
        return self.visible.natural_sample(field, generator)

    def log_density(self, v: Tensor, theta: Tensor) -> Tensor:
        """``b'v - r(v) + A(theta)``, float64."""
        hidden = self.hidden.map(torch.Tensor.double).natural_log_partition(theta.double())
        return hidden + _layer_density(self.visible, v, self.visible_bias)


class Segment:
    r"""The machines between two machines without offsets, straight in natural parameters.

    At the share s every natural parameter, the precisions and the weight are
    :math:`(1 - s)\, \eta_0 + s\, \eta_1`. The hidden natural parameter of a state is linear in s as well, so
    that the ratio of two densities costs one product with the *change* of the weight.

    :param RBM low: the machine at s = 0.
    :param RBM high: the machine at s = 1, of the same families and sizes.
    """

    def __init__(self, low: RBM, high: RBM) -> None:
        self._low, self._high = low, high
        self._bias_low, self._bias_high = low.visible.natural_bias, high.visible.natural_bias
        self._pull_low, self._pull_high = low.hidden.natural_bias, high.hidden.natural_bias
        self._bias_change = self._bias_high - self._bias_low
        self._pull_change = self._pull_high - self._pull_low
        self._weight_change = high.weight - low.weight

    def level(self, share: float) -> Level:
        """The machine at a share between 0 and 1."""
        low, high = self._low, self._high
        if share in (0.0, 1.0):
            knot = high if share else low
            bias = self._bias_high if share else self._bias_low
            pull = self._pull_high if share else self._pull_low
            return Level(knot.visible, knot.hidden, bias, pull, knot.weight)
        return Level(
            _between(low.visible, high.visible, share),
            _between(low.hidden, high.hidden, share),
            torch.lerp(self._bias_low, self._bias_high, share),
            torch.lerp(self._pull_low, self._pull_high, share),
            torch.lerp(low.weight, high.weight, share),
        )

    def log_ratio(
        self, v: Tensor, theta: Tensor, share: float, share_next: float
    ) -> tuple[Tensor, Tensor]:
        """Change of the log-density of visible states, without that of constants, float64; and their
        hidden natural parameter at the new share.

        :param Tensor v: visible states.
        :param Tensor theta: their hidden natural parameter at ``share``.
        """
        step = share_next - share
        slope = affine(v, self._weight_change, self._pull_change)
        hidden = self._low.hidden
        if _has_bias_only(hidden):
            # The same rounded theta at both ends: what is wrong with it cancels.
            before = theta.double()
            after = torch.add(before, slope, alpha=step)
            change = hidden.natural_log_partition(after) - hidden.natural_log_partition(before)
        else:
            change = self._hidden_change(theta, slope, share, share_next)
        theta_next = torch.add(theta, slope, alpha=step)
        return change + step * self._visible_slope(v), theta_next

    def _hidden_change(
        self, theta: Tensor, slope: Tensor, share: float, share_next: float
    ) -> Tensor:
        """Change of the log-partition of a hidden layer whose precision changes along the segment."""
        low, high = (
            layer.map(torch.Tensor.double) for layer in (self._low.hidden, self._high.hidden)
        )
        before = theta.double()
        after = torch.add(before, slope, alpha=share_next - share)
        above = _between(low, high, share_next).natural_log_partition(after)
        return above - _between(low, high, share).natural_log_partition(before)

    def _visible_slope(self, v: Tensor) -> Tensor:
        """Derivative in s of ``b'v - r(v)``, which is linear in s."""
        low, high = self._low.visible, self._high.visible
        if _has_bias_only(low):
            return (v * self._bias_change).sum(-1)
        above = _layer_density(high, v, self._bias_high)
        return above - _layer_density(low, v, self._bias_low)


def _has_bias_only(layer: Unit) -> bool:
    """Whether layers of the family differ only in their natural bias, which a level has by itself."""
    return layer.is_discrete and len(layer.parameters) == 1


def _between(low: Unit, high: Unit, share: float) -> Unit:
    """A layer at a share between two others."""
    return low if _has_bias_only(low) else high.interpolate(low, share)


def _layer_density(layer: Unit, v: Tensor, bias: Tensor) -> Tensor:
    """``b'v - r(v)`` where b is the bias given, not the layer's own; float64."""
    exact, states = layer.map(torch.Tensor.double), v.double()
    own = exact.energy_constant - exact.energy(states)
    return own + (states * (bias.double() - exact.natural_bias)).sum(-1)
