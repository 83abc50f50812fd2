# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Neural Boltzmann machines of every pair of families, and their energies for brute force."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm import nn
from tests import brute_force
from tests.brute_force import Layer, Machine

#: Family, size and options of visible layers.
VISIBLE: dict[str, tuple[str, int, dict[str, Any]]] = {
    "gaussian": ("gaussian", 2, {}),
    "low-rank": ("low-rank-gaussian", 2, {"rank": 1}),
    "ising": ("ising", 3, {}),
    "bernoulli": ("bernoulli", 3, {}),
    "ising-quadratic": ("ising", 3, {"form": "quadratic"}),
    "bernoulli-quadratic": ("bernoulli", 3, {"form": "quadratic"}),
    "ising-unbounded": ("ising", 3, {"form": "quadratic", "bounded_loc": False}),
    "categorical": ("categorical", 6, {"num_states": 3}),
    "multinomial": ("multinomial", 3, {"total_count": 2}),
    "mixed": (
        "mixed",
        5,
        {
            "blocks": [
                {"family": "bernoulli", "size": 1},
                {"family": "gaussian", "size": 1},
                {"family": "categorical", "size": 3, "options": {"num_states": 3}},
            ]
        },
    ),
    "mixed-forms": (
        "mixed",
        4,
        {
            "blocks": [
                {"family": "ising", "size": 2, "options": {"form": "quadratic"}},
                {"family": "multinomial", "size": 2, "options": {"total_count": 2}},
            ]
        },
    ),
}
HIDDEN: dict[str, tuple[int, dict[str, Any]]] = {
    "ising": (3, {}),
    "bernoulli": (3, {}),
    "categorical": (4, {"num_states": 2}),
}
PAIRS = [(visible, hidden) for visible in VISIBLE for hidden in HIDDEN]
PAIR_IDS = ["-".join(pair) for pair in PAIRS]


def make_nbm(
    visible: str = "gaussian", hidden: str = "ising", num_context: int = 3, **options: Any
) -> nn.NeuralBoltzmannMachine:
    """A model of a pair of families in float64, with random networks that are not at their offsets."""
    family, size, visible_options = VISIBLE[visible]
    num_hidden, hidden_options = HIDDEN[hidden]
    nbm = nn.NeuralBoltzmannMachine(
        num_context,
        size,
        num_hidden,
        family,
        hidden,
        visible_options={**visible_options, **options.pop("visible_options", {})},
        hidden_options=hidden_options,
        **{"hidden_sizes": (4,), "dtype": torch.float64, "seed": 1, **options},
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in nbm.named_parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            # Precisions near 4/3 and small covariances, which the quadrature of the brute force can take.
            if "log_precision" in name:
                parameter.mul_(0.5).add_(0.1)
            elif "cov_factor" in name:
                parameter.mul_(0.3).add_(noise, alpha=0.05)
            else:
                parameter.add_(noise, alpha=0.4)
    return nbm


def some_contexts(*shape: int, num_context: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, num_context, generator=generator, dtype=torch.float64)


@torch.no_grad()
def to_machine(nbm: nn.NeuralBoltzmannMachine, context: Tensor) -> Machine:
    """The machine of one context, from what the networks give and from the formulas of the docs."""
    config = nbm.config()
    features = context if nbm.trunk is None else nbm.trunk(context)
    raw = {name: getattr(nbm, name)(features).numpy() for name in nbm.network_names}
    visible, offset = _layer(config["visible"], config["visible_options"], raw)
    size = offset.size
    if nbm.offset is not None:
        frozen = {name: value.numpy() for name, value in nbm.offset(context).items()}
        layer, _ = _layer(config["visible"], config["visible_options"], frozen)
        centre = brute_force.mean(layer, np.zeros(size))
        offset = np.where(np.isnan(offset), centre, offset)
    weight = raw["weight"] / (math.sqrt(size) if config["scale_weight"] else 1.0)
    bias = raw.get("hidden_bias", np.zeros(config["num_hidden"]))
    if config["hidden"] == "categorical":
        bias = bias.reshape(-1, config["hidden_options"]["num_states"])
    hidden = Layer(config["hidden"], {"bias": bias})
    return Machine(visible, hidden, weight, np.nan_to_num(offset), np.zeros(bias.size))


def _layer(
    family: str, options: dict[str, Any], raw: dict[str, np.ndarray]
) -> tuple[Layer, np.ndarray]:
    """The layer and the offset that its energy has, NaN where it has none."""
    if family == "mixed":
        return _mixed(options["blocks"], raw)
    if options.get("form") == "quadratic":
        mu = np.tanh(raw["loc"]) if family == "ising" else 1 / (1 + np.exp(-raw["loc"]))
        half = 0.0 if family == "ising" else 0.5
        if not options.get("bounded_loc", True):
            mu = raw["loc"]
        return Layer(family, {"bias": _precision(raw) * (mu - half)}), mu
    if "loc" in raw:
        parameters = {"loc": raw["loc"], "precision": _precision(raw)}
        if family == "low-rank-gaussian":
            parameters["cov_factor"] = raw["cov_factor"].reshape(-1, options["rank"])
            family = "low_rank"
        return Layer(family, parameters), raw["loc"]
    bias = raw["bias"]
    none = np.full(bias.size, np.nan)
    if family == "categorical":
        bias = bias.reshape(-1, options["num_states"])
    return Layer(family, {"bias": bias}, options.get("total_count", 0)), none


def _mixed(blocks: list[dict[str, Any]], raw: dict[str, np.ndarray]) -> tuple[Layer, np.ndarray]:
    parameters, kinds, offsets = {}, [], []
    for i, block in enumerate(blocks):
        own = {n.removesuffix(f"_{i}"): v for n, v in raw.items() if n.endswith(f"_{i}")}
        layer, offset = _layer(block["family"], block.get("options", {}), own)
        parameters |= {f"{i}_{name}": value for name, value in layer.parameters.items()}
        kinds.append((layer.family, layer.total_count))
        offsets.append(offset)
    return Layer("mixed", parameters, 0, tuple(kinds)), np.concatenate(offsets)


def _precision(raw: dict[str, np.ndarray]) -> np.ndarray:
    low, high = -math.log(1000), math.log(1000)
    x = raw["log_precision"]
    return np.exp(low + np.logaddexp(0, x - low) - np.logaddexp(0, x - high))
