# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Enumeration of the states of one layer, in chunks."""

from collections.abc import Iterator

from torch import Tensor

from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.units import Unit

__all__ = ["enumerable_side", "state_chunks"]

#: Entries (states times units of the other layer) of one chunk: 512 KiB in float64, which stay in
#: the cache; with eight times as many the same sum takes 1.4 times as long.
_CHUNK_ENTRIES = 2**16


def enumerable_side(rbm: RBM) -> RBM | None:
    """The machine turned so that its visible layer is the one with fewer states, None if neither
    layer is finite."""
    num_visible, num_hidden = rbm.visible.num_states, rbm.hidden.num_states
    if num_visible is None and num_hidden is None:
        return None
    if num_hidden is None or (num_visible is not None and num_visible <= num_hidden):
        return rbm
    return rbm.transpose()


def state_chunks(unit: Unit, width: int) -> Iterator[Tensor]:
    """All states of a layer in chunks of shape ``(states, size)``.

    :param Unit unit: the layer; its ``num_states`` must be finite.
    :param int width: entries that the caller computes per state, which sets the size of a chunk.
    """
    num_states = unit.num_states
    if num_states is None:
        raise ValueError(f"{type(unit).__name__} units cannot be enumerated")
    chunk = max(1, min(num_states, _CHUNK_ENTRIES // max(width, 1)))
    for start in range(0, num_states, chunk):
        yield unit.states(start, min(start + chunk, num_states))
