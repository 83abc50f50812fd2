# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Layers put on top of each other: checks, and what extra inputs make of them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator

from pyro_ebm.training.finetuning.layers import MeanLayer

__all__ = ["check_layers", "seeded_generator", "widened"]


def check_layers(layers: Sequence[MeanLayer], *, extra_inputs: bool = False) -> None:
    """Refuse layers that do not fit.

    :param bool extra_inputs: whether every layer but the last also has what the layer above it makes as
        inputs.
    :raises ValueError: if they do not.
    """
    if not layers:
        raise ValueError("a classifier needs at least one hidden layer, got none")
    if extra_inputs and len(layers) < 2:
        raise ValueError(f"extra_inputs need two hidden layers, got {len(layers)}")
    sizes = [layer.num_outputs for layer in layers]
    for i, (lower, upper) in enumerate(pairwise(layers)):
        extra = sizes[i + 2] if extra_inputs and i + 2 < len(sizes) else 0
        if lower.num_outputs + extra != upper.num_inputs:
            raise ValueError(
                f"layer {i} has {lower.num_outputs} outputs, but layer {i + 1} takes "
                f"{upper.num_inputs - extra} inputs" + (f" and {extra} extra ones" if extra else "")
            )


def widened(layers: Sequence[MeanLayer]) -> list[MeanLayer]:
    """Layers of which each but the last has the inputs [x, q(h of the layer above)] and the weight
    [W; W' of the layer above]."""
    wide = []
    for layer, above in pairwise(layers):
        weight = torch.cat([layer.weight.detach(), above.weight.detach().T])
        new = MeanLayer(weight, None, layer.family, layer.units.options)
        new.units.load_state_dict(layer.units.state_dict())
        wide.append(new)
    return [*wide, layers[-1]]


def seeded_generator(seed: int | None, device: torch.device | str | None) -> Generator | None:
    """A generator with a seed, None for the global one.

    :raises ValueError: for an impossible seed.
    """
    if seed is None:
        return None
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be None or a whole number >= 0, got {seed!r}")
    return Generator(device=device or "cpu").manual_seed(seed)
