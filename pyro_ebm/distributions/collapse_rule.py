# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""When it is cheaper to integrate a Gaussian layer out than to alternate."""

import torch
from torch import Generator, Size

from pyro_ebm.distributions.collapsed_sweep import CollapsedSweep
from pyro_ebm.distributions.rbm import CanonicalForm
from pyro_ebm.distributions.units import Unit

__all__ = ["CollapseRule"]

#: What a normal number costs, in multiply-adds of a product. Measured: 200 on one core with AVX-512 in
#: float32; half of it is assumed, as the products of other processors are slower.
_NORMAL_COST = 100
#: What the QR factor costs, in products of the same size. Measured: 4 for 784 x 64.
_QR_COST = 4


class CollapseRule:
    """Whether a sweep of a machine should integrate a Gaussian layer out, and the chain if so.

    The chain costs a set-up, which is paid once. It is made when a run would save more than that, or
    when the runs before would have: many short runs then cost at most twice what the better way
    costs. Costs are counted in multiply-adds, and random numbers in their equivalent.

    :param Unit visible: the visible layer, detached.
    :param Unit hidden: the hidden layer, detached.
    :param CanonicalForm form: biases and weights without offsets, detached.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(
        self, visible: Unit, hidden: Unit, form: CanonicalForm, generator: Generator | None
    ) -> None:
        self._parts = visible, hidden, form
        self._generator = generator
        sizes = visible.size, hidden.size
        options = {}
        if visible.is_gaussian:
            options[True] = _saving(*sizes)
        if hidden.is_gaussian:
            options[False] = _saving(*reversed(sizes))
        #: Whether a layer can be integrated out at all.
        self.possible = bool(options)
        #: Whether the chain is one of the hidden layer.
        self.in_hidden = max(options, key=options.__getitem__, default=True)
        self._saving = options.get(self.in_hidden, 0)
        self._foregone = 0
        self._sweep: CollapsedSweep | None = None

    def choose(self, num_rows: int, num_steps: int, collapse: bool | None) -> CollapsedSweep | None:
        """The chain to use for a run, None for alternating sweeps.

        :param int num_rows: rows that take part.
        :param int num_steps: sweeps that the chain would replace.
        :param collapse: True or False where the user has decided.
        :raises ValueError: if the user wants the impossible.
        """
        if collapse and not self.possible:
            names = " and ".join(type(unit).__name__ for unit in self._parts[:2])
            raise ValueError(f"collapse=True needs a Gaussian layer, the layers are {names}")
        if num_steps < 1 or collapse is False:
            return None
        if collapse is None and not self._pays(num_rows * num_steps):
            return None
        if self._sweep is None:
            self._sweep = self._make()
        return self._sweep

    def _pays(self, row_steps: int) -> bool:
        if self._saving <= 0:
            return False
        if self._sweep is not None:
            return True
        self._foregone += row_steps * self._saving
        return self._foregone > self._setup_cost()

    def _setup_cost(self) -> int:
        visible, hidden, form = self._parts
        gaussian = visible if self.in_hidden else hidden
        batch = torch.broadcast_shapes(form.weight.shape[:-2], gaussian.batch_shape)
        size = (hidden if self.in_hidden else visible).size
        factor = 1 + (_QR_COST if gaussian.size > size else 0)
        return Size(batch).numel() * gaussian.size * size**2 * factor

    def _make(self) -> CollapsedSweep:
        visible, hidden, form = self._parts
        if self.in_hidden:
            gaussian, unit = visible, hidden
        else:
            gaussian, unit = hidden, visible
            form = CanonicalForm(form.hidden_bias, form.visible_bias, form.weight.mT, form.constant)
        return CollapsedSweep.from_form(gaussian, unit, form, self._generator)


def _saving(num_gaussian: int, size: int) -> int:
    """What a collapsed sweep costs less than an alternating one, per row."""
    rank = min(num_gaussian, size)
    alternating = 2 * num_gaussian * size + _NORMAL_COST * num_gaussian
    collapsed = size**2 + rank * size + _NORMAL_COST * rank
    return alternating - collapsed
