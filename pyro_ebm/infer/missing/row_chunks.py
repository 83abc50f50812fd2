# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows in chunks, for work whose memory goes with the number of rows."""

from torch import Size

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.observed_rows import ObservedRows

__all__ = ["split_rows"]


def split_rows(dist: RBM, rows: ObservedRows, shape: Size, max_rows: int) -> list[ObservedRows]:
    """Rows of a shape as chunks along one new first axis.

    Axes in front of the machine's own batch shape become that axis and are split; along those of the
    batch shape parameters differ, and they stay whole. Results of the chunks, put one after the other
    along the first axis, can be reshaped to ``shape``.

    :param RBM dist: the compact machine.
    :param ObservedRows rows: rows that have been checked.
    :param Size shape: the shape to give them, which they and the batch shape broadcast to.
    :param int max_rows: rows of a chunk, if the batch shape allows it.
    """
    leading = len(shape) - len(dist.batch_shape)
    count, own = shape[:leading].numel(), shape[leading:]
    size = dist.visible.size
    value = rows.value.expand(*shape, size).reshape(count, *own, size)
    observed = rows.observed.expand(*shape, size).reshape(count, *own, size)
    length = max(1, max_rows // max(1, own.numel()))
    return [
        ObservedRows(dist, some, mask, validate=False)
        for some, mask in zip(value.split(length), observed.split(length), strict=True)
    ]
