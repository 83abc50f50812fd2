# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Layers put on top of each other: checks, and what extra inputs make of them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator

from pyro_ebm.training.finetuning.layers import MeanLayer
from pyro_ebm.training.finetuning.mean_field import TopLayerMeanField

__all__ = ["check_layers", "mean_field_of", "seeded_generator", "widened"]


def check_layers(layers: Sequence[MeanLayer]) -> None:
    """Refuse layers that do not fit.

    :raises ValueError: if they do not.
    """
    if not layers:
        raise ValueError("a classifier needs at least one hidden layer, got none")
    for i, (lower, upper) in enumerate(pairwise(layers)):
        if lower.num_outputs != upper.num_inputs:
            raise ValueError(
                f"layer {i} has {lower.num_outputs} outputs, but layer {i + 1} takes "
                f"{upper.num_inputs} inputs"
            )


def mean_field_of(layers: Sequence[MeanLayer]) -> TopLayerMeanField:
    """The mean field of the deep Boltzmann machine with the weights and biases of two layers.

    :raises ValueError: if their units are no bits.
    """
    families = [layer.family for layer in layers]
    if families != ["bernoulli", "bernoulli"]:
        raise ValueError(
            f"extra_inputs=True is the mean field of Bernoulli layers, got {families}; give a function"
        )
    biases = [layer.units.forward().natural_bias for layer in layers]
    return TopLayerMeanField(layers[0].weight, layers[1].weight, *biases)


def widened(layers: Sequence[MeanLayer]) -> MeanLayer:
    """The first layer with the inputs [v, q(h2)] and the weight [W1; W2']."""
    first, second = layers
    weight = torch.cat([first.weight.detach(), second.weight.detach().T])
    wide = MeanLayer(weight, None, first.family, first.units.options)
    wide.units.load_state_dict(first.units.state_dict())
    return wide


def seeded_generator(seed: int | None, device: torch.device | str | None) -> Generator | None:
    """A generator with a seed, None for the global one.

    :raises ValueError: for an impossible seed.
    """
    if seed is None:
        return None
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be None or a whole number >= 0, got {seed!r}")
    return Generator(device=device or "cpu").manual_seed(seed)
