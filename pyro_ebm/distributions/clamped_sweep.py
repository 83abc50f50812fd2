# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs sweeps of the missing entries of rows that do not agree on what is missing."""

import math

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions.batched_sweep import BatchedSweep
from pyro_ebm.distributions.gibbs_sweep import GibbsSweep
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.row_clamp import clamp_rows

__all__ = ["ClampedSweep"]


class ClampedSweep:
    r"""Gibbs sweeps that leave the law of hidden and missing units given the observed ones invariant.

    A step draws the hidden layer given all visible entries, all visible entries given that, and puts
    the observed ones back. No weight is repeated, whatever the masks are. Where the clamped machine
    (:meth:`RBM.clamp_rows`) needs no larger weight than the machine itself, because one mask serves all
    rows or every row has a weight of its own, runs of a machine with a Gaussian layer go through it where
    integrating that layer out is cheaper; the law is the same. It is made when it is first needed.

    States have shape ``(chains..., rows..., V)`` with any leading chain axes; they are complete rows,
    with the observed values in their places. Parameters are read when the object is made or later; make a
    new one after they have changed.

    :param RBM dist: the machine, with any batch shape.
    :param Tensor value: shape ``(..., V)``, whose batch shape broadcasts with the machine's; read only
        where ``observed`` is True.
    :param Tensor observed: boolean, shape ``(..., V)``; True where an entry is observed.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises ValueError: for rows that :meth:`RBM.clamp_rows` refuses.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM, ClampedSweep
    >>> rbm = BernoulliRBM(torch.zeros(3, 2), torch.tensor([9.0, 9.0, -9.0]), torch.zeros(2))
    >>> value = torch.tensor([[0.0, torch.nan, torch.nan], [torch.nan, 0.0, 1.0]])
    >>> sweep = ClampedSweep(rbm, value, ~value.isnan(), torch.Generator().manual_seed(0))
    >>> sweep.run(sweep.initial(), 10)
    tensor([[0., 1., 0.],
            [1., 0., 1.]])
    """

    def __init__(
        self, dist: RBM, value: Tensor, observed: Tensor, generator: Generator | None = None
    ) -> None:
        self._build(dist, ObservedRows(dist, value, observed), generator)

    @classmethod
    def of_rows(
        cls, dist: RBM, rows: ObservedRows, generator: Generator | None = None
    ) -> "ClampedSweep":
        """The same for rows that have been checked."""
        new = cls.__new__(cls)
        new._build(dist, rows, generator)
        return new

    @torch.no_grad()
    def _build(self, dist: RBM, rows: ObservedRows, generator: Generator | None) -> None:
        #: Shape of the rows with the batch shape of the machine.
        self.batch_shape = rows.batch_shape
        #: Number V of visible entries.
        self.num_visible = dist.visible.size
        self._observed, self._value = rows.observed, rows.value.detach()
        self._missing = (~rows.observed).to(self._value.dtype)
        self._sweep = GibbsSweep(dist, generator)
        self._parts = dist.detach(), rows
        #: Whether a run may go through the clamped machine, and its sweeps once one does.
        self._may_collapse = self._sweep._rule.possible and _is_small(
            rows.observed.shape, dist.weight.shape
        )
        self._clamped: GibbsSweep | None = None

    def initial(self, chain_shape: Size | tuple[int, ...] = ()) -> Tensor:
        """Rows whose missing entries are drawn from the visible layer alone, without the weights.

        :param chain_shape: chain axes in front of the rows.
        """
        shape = Size((*chain_shape, *self.batch_shape, self.num_visible))
        return self.complete(self._sweep.initial_visible(shape))

    def complete(self, v: Tensor) -> Tensor:
        """States with the observed values in their places."""
        return torch.where(self._observed, self._value, v)

    def hidden_theta(self, v: Tensor) -> Tensor:
        """Natural parameter of the hidden layer given complete rows."""
        return self._sweep.hidden_theta(v)

    def visible_theta(self, h: Tensor) -> Tensor:
        """Natural parameter of all visible units given hidden states."""
        return self._sweep.visible_theta(h)

    def draw_hidden(self, theta: Tensor) -> Tensor:
        """Draw the hidden layer at its natural parameter."""
        return self._sweep.draw_hidden(theta)

    def sample_hidden(self, v: Tensor) -> Tensor:
        """Draw the hidden layer given complete rows."""
        return self._sweep.sample_hidden(v)

    def sample_visible(self, h: Tensor) -> Tensor:
        """Complete rows, the missing entries drawn given hidden states."""
        return self._put_back(self._sweep.sample_visible(h))

    def _put_back(self, draw: Tensor) -> Tensor:
        """:meth:`complete` for draws, which are finite: a tenth of the time of a choice by a mask."""
        return torch.addcmul(self._value, self._missing, draw)

    def run(self, v: Tensor, num_steps: int) -> Tensor:
        """Complete rows after ``num_steps`` sweeps (hidden given visible, then missing given hidden).

        :param Tensor v: states; what they have at observed entries is not read.
        :param int num_steps: sweeps.
        """
        v = self.complete(v)
        if num_steps > 1:
            if self._collapse_pays(math.prod(v.shape[:-1]), num_steps):
                return self.complete(self._clamped_sweep().run(v, num_steps, collapse=True))
            if self._sweep._weight.dim() > 2:
                return self._batched().run(v, num_steps, (self._missing, self._value))
        for _ in range(num_steps):
            v = self.sample_visible(self.sample_hidden(v))
        return v

    def _collapse_pays(self, num_rows: int, num_steps: int) -> bool:
        # The clamped machine has layers of the same sizes.
        return self._may_collapse and self._sweep._rule._pays(num_rows * (num_steps - 1))

    @torch.no_grad()
    def _clamped_sweep(self) -> GibbsSweep:
        if self._clamped is None:
            self._clamped = GibbsSweep(clamp_rows(*self._parts), self._sweep.generator)
        return self._clamped

    def _batched(self) -> BatchedSweep:
        sweep = self._sweep
        layers = sweep._visible, sweep._hidden
        biases = sweep._visible_bias, sweep._hidden_bias
        return BatchedSweep(layers, biases, sweep._weight, sweep.generator)

    def run_from_hidden(self, h: Tensor, num_steps: int) -> Tensor:
        """Complete rows after ``num_steps`` sweeps from hidden states, of which the first has drawn its
        hidden states already: with one step, the missing entries given ``h``.

        :param Tensor h: hidden states, shape ``(chains..., rows..., H)``.
        :param int num_steps: at least 1.
        """
        return self.run(self.sample_visible(h), num_steps - 1)

    def run_from_theta(self, theta: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """At least one sweep from the hidden natural parameter of the present rows.

        :returns: complete rows, and their hidden natural parameter.
        """
        v = self.run_from_hidden(self.draw_hidden(theta), num_steps)
        return v, self.hidden_theta(v)


def _is_small(mask_shape: Size, weight_shape: Size) -> bool:
    """Whether a weight for every mask has no more entries than the weight itself."""
    batch = weight_shape[:-2]
    try:
        return torch.broadcast_shapes(mask_shape[:-1], batch).numel() == batch.numel()
    except RuntimeError:
        return False
