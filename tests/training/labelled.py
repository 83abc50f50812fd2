# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Small classification RBMs with random parameters, and inputs for them."""

from typing import Any

import torch
from torch import Tensor

from pyro_ebm import nn
from tests.distributions.families import uniform

NUM_CLASSES = 3
#: Size and options of the input of each family.
LAYERS: dict[str, tuple[int, dict[str, Any]]] = {
    "bernoulli": (3, {}),
    "ising": (3, {}),
    "categorical": (3, {"num_states": 3}),
    "gaussian": (2, {}),
}
#: Size and options of the hidden layer of each family.
HIDDEN: dict[str, tuple[int, dict[str, Any]]] = {
    "bernoulli": (2, {}),
    "ising": (2, {}),
    "categorical": (3, {"num_states": 3}),
    "gaussian": (1, {"learn_precision": True}),
    "relu": (1, {"learn_precision": True}),
}


@torch.no_grad()
def class_module(visible: str, hidden: str, **options: Any) -> nn.ClassificationRBM:
    """A classification RBM of random parameters and offsets, in float64."""
    num_visible, visible_options = LAYERS[visible]
    num_hidden, hidden_options = HIDDEN[hidden]
    module = nn.ClassificationRBM(
        num_visible,
        num_hidden,
        NUM_CLASSES,
        visible=visible,
        hidden=hidden,
        visible_options=visible_options,
        hidden_options=hidden_options,
        **{"dtype": torch.float64, "seed": 0, **options},
    )
    for name, tensor in module.state_dict().items():
        bound = {"weight": 0.35}.get(name, 0.2 if name.endswith("log_precision") else 1.0)
        tensor.copy_(uniform(tuple(tensor.shape), -bound, bound))
    return module


def some_inputs(visible: str, count: int) -> Tensor:
    """Inputs inside of the support of a family, float64."""
    size = LAYERS[visible][0]
    if visible == "gaussian":
        return uniform((count, size), -2.0, 2.0)
    if visible == "categorical":
        return torch.eye(size, dtype=torch.float64)[torch.arange(count) % size]
    bits = (uniform((count, size), 0.0, 1.0) > 0.5).double()
    return 2.0 * bits - 1.0 if visible == "ising" else bits
