# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Modules of every pair of families with random parameters, and the same machines for brute force."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from tests.brute_force import Layer, Machine
from tests.distributions.families import CONTINUOUS, uniform

#: Size and required options of the layer of each family.
LAYERS: dict[str, tuple[int, dict[str, Any]]] = {
    "bernoulli": (3, {}),
    "ising": (3, {}),
    "categorical": (6, {"num_states": 3}),
    "multinomial": (3, {"total_count": 3}),
    "gaussian": (2, {}),
    "relu": (2, {}),
}


def make_module(
    pair: tuple[str, str], *, learn_precision: bool = False, seed: int = 0, **options: Any
) -> nn.RBM:
    """A module of a pair of families with initial parameters, in float64 unless told otherwise."""
    sizes, layer_options = [], []
    for family in pair:
        size, required = LAYERS[family]
        extra = {"learn_precision": learn_precision} if family in CONTINUOUS else {}
        sizes.append(size)
        layer_options.append({**required, **extra})
    return nn.RBM(
        *sizes,
        *pair,
        visible_options=layer_options[0],
        hidden_options=layer_options[1],
        **{"dtype": torch.float64, "seed": seed, **options},
    )


@torch.no_grad()
def random_module(pair: tuple[str, str], **options: Any) -> nn.RBM:
    """The same with random parameters and offsets that the brute force can integrate."""
    module = make_module(pair, **options)
    # Two continuous layers of two units each are normalisable below a spectral norm of 0.8.
    bound = 0.35 if set(pair) <= set(CONTINUOUS) else 0.7
    for name, tensor in module.state_dict().items():
        low, high = (-1.0, 1.0)
        if name == "weight":
            low, high = -bound, bound
        elif name.endswith("log_precision"):
            low, high = -0.2, 0.7
        tensor.copy_(uniform(tuple(tensor.shape), low, high))
    return module


def to_layer(module: nn.RBM, side: str) -> Layer:
    """One layer for the brute force, from the tensors that are stored."""
    part = getattr(module, side)
    arrays = {}
    for name, tensor in part.state_dict().items():
        value = tensor.double().numpy()
        if name == "log_precision":
            # log_precision is a choice of storage: the maths has the precision itself.
            name, value = "precision", torch.as_tensor(value).exp().numpy()
        arrays[name] = value
    return Layer(part.family, arrays, part.options.get("total_count", 0))


def to_machine(module: nn.RBM) -> Machine:
    """The module for the brute force, from its state and not from its distribution."""
    state = {name: tensor.double() for name, tensor in module.state_dict().items()}
    num_visible, num_hidden = state["weight"].shape
    zeros = torch.zeros(num_visible + num_hidden, dtype=torch.float64)
    return Machine(
        to_layer(module, "visible"),
        to_layer(module, "hidden"),
        state["weight"].numpy(),
        state.get("visible_offset", zeros[:num_visible]).numpy(),
        state.get("hidden_offset", zeros[:num_hidden]).numpy(),
    )


def state_of(module: nn.RBM) -> dict[str, Tensor]:
    """A copy of the module's state."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(a: nn.RBM, b: nn.RBM) -> None:
    """The same tensors, bit by bit."""
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def some_bits(num_rows: int, num_visible: int = 6, seed: int = 0) -> Tensor:
    """Rows of bits of the rates 0.2 to 0.8, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.linspace(0.2, 0.8, num_visible).expand(num_rows, num_visible)
    return torch.bernoulli(rates, generator=generator)


@contextmanager
def interrupt_at(step: int, gradient: type, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C arrives at the given step of a run whose gradients a class makes."""
    done = 0
    original = gradient.__call__

    def interrupted(self, *batch):
        nonlocal done
        if done == step:
            raise KeyboardInterrupt
        done += 1
        return original(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gradient, "__call__", interrupted)
        yield
