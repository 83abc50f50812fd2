# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What keeps weights small, hidden units rarely on, and hidden units apart."""

from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.units import Unit

__all__ = ["Sparsity", "keep_mask", "layer_option", "restore_max_norm", "shrink", "weight_penalty"]

#: Rates that are estimated from few rows are kept this far from 0 and 1.
_MARGIN = 1e-6
#: Families whose rate of being on is a function of their mean.
SPARSE_FAMILIES = ("bernoulli", "ising")


def weight_penalty(weight: Tensor, l1: float, l2: float = 0.0) -> Tensor:
    r"""The value :math:`\lambda_1 \sum |W_{ij}| + \tfrac{\lambda_2}{2} \sum W_{ij}^2`.

    :param Tensor weight: the weights.
    :param float l1: :math:`\lambda_1`.
    :param float l2: :math:`\lambda_2`, the weight decay.
    """
    return l1 * weight.abs().sum() + 0.5 * l2 * weight.square().sum()


@torch.no_grad()
def shrink(weight: Tensor, amount: float) -> None:
    """Decoupled weight decay: the weights become ``1 - amount`` times what they were."""
    weight.mul_(1.0 - amount)


@torch.no_grad()
def restore_max_norm(weight: Tensor, max_norm: float) -> None:
    r"""Scale weights into a hidden unit, the columns of W, down to a norm of at most ``max_norm``.

    The projection onto :math:`\|W_{\cdot j}\|_2 \le c` (Srebro and Shraibman 2005; for dropout, Srivastava
    et al. 2014, section 5.1).
    """
    norm = weight.norm(dim=0)
    weight.mul_((max_norm / norm.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(max=1.0))


def keep_mask(shape: torch.Size, drop: float, like: Tensor, generator: Generator | None) -> Tensor:
    """Ones with probability ``1 - drop``, otherwise zeros."""
    mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    return mask.uniform_(generator=generator).ge_(drop)


class Sparsity:
    r"""A penalty on hidden units whose rate of being on is not the target's.

    .. math::
        \lambda \sum_j \Bigl( t \log \frac{t}{q_j} + (1 - t) \log \frac{1 - t}{1 - q_j} \Bigr)

    with :math:`q_j` the mean of unit j over the data. From a batch comes the gradient

    .. math::
        \lambda \frac{\hat q_j - t}{\hat q_j (1 - \hat q_j)} \frac1N \sum_n \partial\, q(h_j | v_n),

    in which the exact derivative of the batch's mean stands beside an estimate :math:`\hat q_j` of the
    mean over the data: a moving average over batches, without the bias of its start. Without damping it is
    the gradient of the penalty of the batch; see Hinton, *A practical guide to training restricted Boltzmann
    machines* (2010), section 11. A unit of spins is on with the rate :math:`(1 + E[h]) / 2`.

    :param float target: t, in (0, 1).
    :param float damping: decay of the moving average, in [0, 1).
    :param str family: "bernoulli" or "ising".
    :raises ValueError: for another family.
    """

    def __init__(self, target: float, damping: float, family: str) -> None:
        if family not in SPARSE_FAMILIES:
            raise ValueError(
                f"sparsity_cost is an option of hidden bits or spins, not of {family!r}"
            )
        self.target = target
        self.damping = damping
        self.spins = family == "ising"
        # The average and its weight: their ratio has no bias.
        self._sum: Tensor | None = None
        self._weight = 0.0

    @property
    def rate(self) -> Tensor | None:
        r"""Rates :math:`\hat q`, shape ``(H,)``; None before the first batch."""
        return None if self._sum is None else self._sum / self._weight

    def penalty(self, rate: Tensor) -> Tensor:
        """The value at some rates, for a cost of 1.

        :param Tensor rate: shape ``(H,)``.
        """
        q = rate.clamp(_MARGIN, 1.0 - _MARGIN)
        t = torch.as_tensor(self.target, dtype=q.dtype, device=q.device)
        return (t * (t / q).log() + (1 - t) * ((1 - t) / (1 - q)).log()).sum()

    def correction(self, mean: Tensor, cost: float) -> Tensor:
        r"""What to subtract from hidden means of the data in the statistics of the gradient.

        Then the product that makes :math:`\langle v h^\top \rangle_{data}` has the penalty's gradient in it,
        and it costs no product of its own.

        :param Tensor mean: mean hidden states of a batch, shape ``(rows, H)``.
        :param float cost: :math:`\lambda`.
        """
        on = 0.5 * (1.0 + mean) if self.spins else mean
        batch = on.mean(0)
        self._sum = (1 - self.damping) * batch + (
            0.0 if self._sum is None else self.damping * self._sum
        )
        self._weight = self.damping * self._weight + (1 - self.damping)
        q = (self._sum / self._weight).clamp(_MARGIN, 1.0 - _MARGIN)
        factor = cost * (q - self.target) / (q * (1 - q))
        # d sigmoid(theta) = on (1 - on) d theta; spins are on with the rate sigmoid(2 theta).
        slope = on * (1 - on)
        return factor * slope * (2.0 if self.spins else 1.0)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        if self._sum is None:
            return {}
        return {
            "sparsity_sum": self._sum,
            "sparsity_weight": self._sum.new_tensor(self._weight).double(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        if "sparsity_sum" in state:
            self._sum = state["sparsity_sum"]
            self._weight = float(state["sparsity_weight"])


def layer_option(config: Any, name: str, number: int) -> Any:
    """An option of a hidden layer of a deep machine: its own, or that of all.

    :param config: options of the run.
    :param str name: of the option.
    :param int number: of the layer, from 1.
    """
    own = config.layers[number - 1] if number <= len(config.layers) else {}
    return own.get(name, getattr(config, name))


def check_hidden_bits(option: str, unit: Unit, family: str) -> None:
    """Refuse an option of hidden layers whose only parameters are biases.

    :raises ValueError: for another family.
    """
    if set(unit.parameters) != {"bias"} or family == "relu":
        raise ValueError(f"{option} is no option of {family!r} hidden units")
