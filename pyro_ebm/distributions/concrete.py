# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Bits relaxed to [0, 1], so that gradients pass through them, and machines that take such values."""

import copy
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.utils import broadcast_all
from torch.nn.functional import softplus

from pyro_ebm.distributions.dbm import DBM
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.units import Bernoulli, Unit

__all__ = ["ConcreteBernoulli", "relaxed"]

_Machine = TypeVar("_Machine", RBM, DBM)


class ConcreteBernoulli(TorchDistribution):
    r"""Nonnormalized relaxation of a bit, with reparametrised draws in [0, 1].

    .. math::
        z = \sigma\bigl((l + \mathrm{logit}\, u) / \tau\bigr), \quad u \sim U(0, 1), \qquad
        \log q(z) = z\, l - \log(1 + e^l)

    Draws are those of the binary concrete distribution [1, 2] with logits l and temperature
    :math:`\tau`: :math:`z > 1/2` has the probability :math:`\sigma(l)` at every temperature, and z tends
    to a bit for :math:`\tau \to 0`. :meth:`log_prob` is **not** their density. It is the mass function of
    the *bit*, extended linearly from 0 and 1 to what lies between, as in GumBolt [3]. With it, and a machine
    that takes such values (:func:`relaxed`), the evidence lower bound becomes a differentiable function of
    the draws, the same as that of the discrete model wherever all of them are bits. **It is a proxy**: at
    :math:`\tau > 0` it may be above or below the bound of the discrete model. Evaluate with bits, drawn from
    :class:`pyro.distributions.Bernoulli`.

    With ``hard=True`` the value is the bit :math:`[z > 1/2]` itself, and the gradient that of z (the
    straight-through estimator): the value of the loss is then that of the discrete model, while its gradient
    is still biased.

    **References**

    [1] *The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables*, Chris Maddison,
    Andriy Mnih, Yee Whye Teh (2017), appendix B

    [2] *Categorical Reparameterization with Gumbel-Softmax*, Eric Jang, Shixiang Gu, Ben Poole (2017)

    [3] *GumBolt: Extending Gumbel trick to Boltzmann priors*, Amir Khoshaman, Mohammad Amin (2018)

    :param temperature: :math:`\tau > 0`, a number or a tensor that broadcasts with ``logits``.
    :param Tensor logits: l, log-odds of the bits, any shape; with the temperature's it makes the batch shape.
    :param bool hard: whether values are bits.
    :raises ValueError: if a temperature is not positive or a logit NaN (with ``validate_args``).

    >>> import torch
    >>> from pyro_ebm.distributions import ConcreteBernoulli
    >>> logits = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    >>> z = ConcreteBernoulli(0.3, logits).to_event(1).rsample((5,))
    >>> z.shape, bool(((z >= 0) & (z <= 1)).all()), z.requires_grad
    (torch.Size([5, 3]), True, True)
    >>> ConcreteBernoulli(0.3, logits, hard=True).sample((4,)).unique()
    tensor([0., 1.])
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        temperature: Tensor | float,
        logits: Tensor,
        hard: bool = False,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"logits must be a floating-point tensor, got {got}")
        self.temperature, self.logits = _broadcast(temperature, logits)
        self.hard = hard
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ConcreteBernoulli":
        shape = Size(batch_shape)
        new = type(self)(
            self.temperature.expand(shape),
            self.logits.expand(shape),
            self.hard,
            validate_args=False,
        )
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        """Probabilities of z > 1/2, those of the bits."""
        return torch.sigmoid(self.logits)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        z = torch.sigmoid((self.logits + _logistic_noise(shape, self.logits)) / self.temperature)
        # Exactly a bit: for z > 1/2 the difference 1 - z has no rounding error.
        return z + ((z > 0.5).to(z.dtype) - z).detach() if self.hard else z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value * self.logits - softplus(self.logits)


def _broadcast(temperature: Tensor | float, logits: Tensor) -> tuple[Tensor, Tensor]:
    try:
        temperature, logits = broadcast_all(temperature, logits)
    except RuntimeError as error:
        shapes = [tuple(torch.as_tensor(x).shape) for x in (temperature, logits)]
        raise ValueError(
            f"temperature of shape {shapes[0]} does not broadcast with logits of shape {shapes[1]}"
        ) from error
    return temperature, logits


def _logistic_noise(shape: Size, like: Tensor) -> Tensor:
    """logit(u) of uniform numbers, without infinities: ``rand`` may give 0, and in half precision 1."""
    eps = torch.finfo(like.dtype).eps
    u = torch.rand(shape, dtype=like.dtype, device=like.device).clamp_(eps / 4, 1 - eps / 2)
    return u.log() - torch.log1p(-u)


class _RelaxedBits(constraints.interval):
    """[0, 1], where a relaxed machine's log_prob() is defined but no density: nobody may sample it there."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


@biject_to.register(_RelaxedBits)
@transform_to.register(_RelaxedBits)
def _refuse_transform(constraint: _RelaxedBits) -> None:
    raise NotImplementedError(
        "a relaxed machine is no density over [0, 1], as its log Z is that of bits, so it has no continuous "
        "inference (HMC, NUTS, continuous autoguides); use it with a guide of ConcreteBernoulli, or "
        "FactorReparam(constraints.unit_interval) and init_strategy=init_to_sample for the continuous machine"
    )


_relaxed_bits = _RelaxedBits()


class RelaxedBernoulli(Bernoulli):
    """Bits whose energy is also asked for between 0 and 1; their states, sums and draws are those of bits."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(_relaxed_bits, 1)


def relaxed(machine: _Machine) -> _Machine:
    r"""The same machine, whose :meth:`log_prob` takes visible states in [0, 1] as well.

    The energy :math:`E(v, h)` of bits is linear in each :math:`v_i`, and so defined between 0 and 1 by its
    own formula; :meth:`log_prob` is the :math:`-F(v) = \log \sum_h e^{-E(v, h)}` that follows (of a
    :class:`DBM` the mean-field bound of it), differentiable by v. **log Z, samples, enumeration and chains
    are those of bits**, so that it is no density over [0, 1]: use it where the guide's draws are relaxed
    (:class:`ConcreteBernoulli`), and the machine as it was for everything else. Continuous
    autoguides refuse it with a :class:`NotImplementedError`, and so do HMC and NUTS beyond 1024 states, up to
    which they sum the bits out.

    :class:`~pyro_ebm.infer.ContrastiveDivergence` finds it like any other machine. Its chains are of the
    discrete machine: those that start at the site's value start from hidden states drawn given the relaxed
    one, and have bits from their first sweep on. A ``kernel`` must take that start, as block Gibbs and
    tempering do; informed proposals refuse it.

    :param machine: an RBM or DBM with Bernoulli visible units, of any batch shape; an attached log Z is kept.
    :raises TypeError: if the machine is neither, or its visible units are of another family.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM, relaxed
    >>> prior = relaxed(BernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.zeros(2)))
    >>> prior.log_prob(torch.tensor([0.5, 0.0, 1.0]))
    tensor(3.4028)
    >>> prior.sample((100,)).unique()
    tensor([0., 1.])
    """
    if isinstance(machine, DBM):
        first = _relaxed_unit(machine.units[0])
        new = copy.copy(machine)
        # All even layers, so that they still are one layer of one family where chains move them.
        new.units = (
            first,
            *(
                _relaxed_unit(unit) if number % 2 == 0 and isinstance(unit, Bernoulli) else unit
                for number, unit in enumerate(machine.units[1:], 1)
            ),
        )
        return new
    if not isinstance(machine, RBM):
        raise TypeError(f"machine must be an RBM or DBM, got {type(machine).__name__}")
    new = copy.copy(machine)
    new.visible = _relaxed_unit(machine.visible)
    return new


def _relaxed_unit(unit: Unit) -> RelaxedBernoulli:
    if not isinstance(unit, Bernoulli):
        raise TypeError(
            f"only Bernoulli visible units can be relaxed, these are {type(unit).__name__}"
        )
    return RelaxedBernoulli(unit.bias, validate_args=False)
