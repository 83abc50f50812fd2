# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the axes of chains, levels and parameters stand in the tensors of a tempering kernel."""

from collections.abc import Sequence

from torch import Size, Tensor

from pyro_ebm.ops.linear import chain_axes

__all__ = ["ReplicaLayout"]


class ReplicaLayout:
    """Between the state of a kernel, ``chain_shape + full_batch_shape + (V,)``, and the replicas of a ladder,
    ``chains + (num_levels,) + batch_shape + (V,)``.

    Axes that :meth:`~pyro_ebm.distributions.RBM.expand` added to a machine, along which its parameters do
    not vary, are chains to a ladder.

    :param chain_shape: leading axes of the kernel's state.
    :param full_batch_shape: batch shape of the target.
    :param batch_shape: batch shape of its parameters, that of the ladder.
    """

    def __init__(self, chain_shape: Size, full_batch_shape: Size, batch_shape: Size) -> None:
        self.batch_shape = batch_shape
        #: Axis of the levels in numbers of a state, counted from the end.
        self.level_axis = -1 - len(batch_shape)
        self._full = chain_shape + full_batch_shape
        parameter, chain = chain_axes(full_batch_shape, batch_shape)
        if full_batch_shape == batch_shape:
            # Nothing to move, also where an axis has size one.
            parameter, chain = list(range(len(batch_shape))), []
        offset = len(chain_shape)
        self._order = [*range(offset), *(offset + i for i in [*chain, *parameter])]
        self._is_plain = not chain
        #: Leading axes of the replicas.
        self.chains = chain_shape + Size([full_batch_shape[i] for i in chain])

    def shape(self, num_levels: int) -> Size:
        """Shape of numbers of all replicas."""
        return self.chains + Size((num_levels,)) + self.batch_shape

    def fold(self, x: Tensor) -> Tensor:
        """States of one level, shape ``chains + batch_shape + (V,)``, from those of the kernel."""
        if self._is_plain:
            return x
        moved = x.permute([*self._order, x.dim() - 1])
        return moved.reshape([*self.chains, *self.batch_shape, x.shape[-1]])

    def unfold(self, x: Tensor, event_shape: Sequence[int] = ()) -> Tensor:
        """Numbers of one level in the kernel's layout; the inverse of :meth:`fold`."""
        if self._is_plain:
            return x
        moved = x.reshape([*(self._full[i] for i in self._order), *event_shape])
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return moved.permute([*inverse, *range(len(inverse), moved.dim())])

    def top(self, x: Tensor) -> Tensor:
        """The last level of states or fields, a view."""
        return x.select(self.level_axis - 1, -1)

    def draw(self, v: Tensor) -> Tensor:
        """The states of the last level in the kernel's layout, a copy."""
        return self.unfold(self.top(v).clone(), v.shape[-1:])

    def at_every_level(self, top: Tensor, num_levels: int) -> Tensor:
        """Copies of the states of one level at all levels."""
        return top.unsqueeze(self.level_axis - 1).repeat_interleave(num_levels, self.level_axis - 1)
