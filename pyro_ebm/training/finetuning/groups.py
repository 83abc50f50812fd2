# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which parameters are trained, and at which rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_ebm.training.finetuning.classifier import FeedForwardClassifier
from pyro_ebm.training.finetuning.config import FineTuneConfig

__all__ = ["parameter_groups", "training_mode"]


def parameter_groups(
    classifier: FeedForwardClassifier, config: FineTuneConfig
) -> list[dict[str, Any]]:
    """Weights and other parameters of every layer that is trained, with their rates."""
    blocks = classifier.blocks()
    factors = (1.0,) * len(blocks) if config.rate_factors is None else config.rate_factors
    if len(factors) != len(blocks):
        raise ValueError(
            f"rate_factors must have {len(blocks)} entries, one for every hidden layer and one for "
            f"the softmax layer, got {tuple(factors)}"
        )
    groups = []
    for block, factor in zip(blocks, factors, strict=True):
        if factor == 0:
            continue
        rate = config.learning_rate * factor
        weight = block.get_parameter("weight")
        others = [p for p in block.parameters() if p is not weight]
        for parameters, decay in (([weight], config.weight_decay), (others, 0.0)):
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return groups


@contextmanager
def training_mode(classifier: FeedForwardClassifier, optimizer: Any) -> Iterator[None]:
    """Training mode, in which layers of rate 0 cost no gradient; as it was before, afterwards."""
    moving = {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = [(p, p.requires_grad) for p in classifier.parameters()]
    was_training = classifier.training
    classifier.train()
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in moving)
        yield
    finally:
        classifier.train(was_training)
        classifier.zero_grad(set_to_none=True)
        for parameter, required in before:
            parameter.requires_grad_(required)
