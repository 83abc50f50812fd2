# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Persistent chains by key."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["KeyedChains"]


class KeyedChains:
    """Chains of every key that has been seen, in one tensor that grows.

    Room is doubled when it is used up, so that a key costs one copy on average however many follow.

    >>> import torch
    >>> chains = KeyedChains()
    >>> chains.add([7, 3], torch.zeros(10, 2, 5))
    >>> chains.keys, chains.states.shape
    (tensor([7, 3]), torch.Size([2, 10, 5]))
    """

    def __init__(self) -> None:
        self._slot: dict[int, int] = {}
        self._room: Tensor | None = None

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def keys(self) -> Tensor:
        """The keys in the order of :attr:`states`, which is that of their first steps."""
        return torch.tensor(list(self._slot), dtype=torch.long)

    @property
    def states(self) -> Tensor:
        """The states by key, shape ``(num_keys, num_chains, size)``."""
        return torch.empty(0, 0, 0) if self._room is None else self._room[: len(self)]

    @property
    def num_chains(self) -> int | None:
        """Chains of a key; None as long as there is none."""
        return None if self._room is None else self._room.shape[1]

    @property
    def size(self) -> int | None:
        """Entries of a state; None as long as there is none."""
        return None if self._room is None else self._room.shape[2]

    def to(self, reference: Tensor) -> None:
        """Move the states to the device and dtype of a tensor."""
        if self._room is not None:
            self._room = self._room.to(device=reference.device, dtype=reference.dtype)

    def unknown(self, keys: Sequence[int]) -> list[int]:
        """Places in a list of different keys of those that have no chains yet."""
        return [place for place, key in enumerate(keys) if key not in self._slot]

    def add(self, keys: Sequence[int], states: Tensor) -> None:
        """Chains of new keys.

        :param keys: keys without chains.
        :param Tensor states: shape ``(num_chains, len(keys), size)``.
        """
        used, total = len(self), len(self) + len(keys)
        if self._room is None or total > len(self._room):
            rows = total if self._room is None else max(total, 2 * len(self._room))
            room = states.new_empty(rows, len(states), states.shape[-1])
            room[:used] = self.states if used else room[:0]
            self._room = room
        self._slot |= {key: used + place for place, key in enumerate(keys)}
        self.set(keys, states)

    def get(self, keys: Sequence[int]) -> Tensor:
        """States of some keys, shape ``(num_chains, len(keys), size)``."""
        return self.states.index_select(0, self._index(keys)).transpose(0, 1)

    def set(self, keys: Sequence[int], states: Tensor) -> None:
        """Replace the states of some keys, shape as in :meth:`get`."""
        self.states.index_copy_(0, self._index(keys), states.detach().transpose(0, 1))

    def _index(self, keys: Sequence[int]) -> Tensor:
        return torch.tensor([self._slot[key] for key in keys], device=self.states.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the keys and their states."""
        return {"keys": self.keys, "states": self.states.clone()}

    @classmethod
    def from_state(cls, state: Any) -> "KeyedChains":
        """What :meth:`state_dict` gave.

        :raises ValueError: if the state is something else.
        """
        keys, states = (
            (state.get("keys"), state.get("states")) if isinstance(state, dict) else (None, None)
        )
        if not (
            isinstance(keys, Tensor)
            and isinstance(states, Tensor)
            and keys.dim() == 1
            and states.dim() == 3
            and len(keys) == len(states) == len(keys.unique())
        ):
            raise ValueError(
                "keyed chains must be a dict of 'keys', different numbers of shape (n,), and "
                "'states' of shape (n, num_chains, size)"
            )
        new = cls()
        if len(keys):
            new.add(keys.tolist(), states.transpose(0, 1))
        return new
