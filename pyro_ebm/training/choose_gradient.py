# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which gradient a module is trained with, and which options it has."""

from collections.abc import Sequence

from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.training.classification_gradient import ClassificationGradient
from pyro_ebm.training.conditional_gradient import ConditionalGradient
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.config_checks import (
    CONDITIONAL_ONLY,
    DEEP_ONLY,
    LABELLED_ONLY,
    RBM_ONLY,
    SHALLOW_ONLY,
)
from pyro_ebm.training.deep_exact_gradient import DeepExactGradient
from pyro_ebm.training.deep_gradient import DeepGradient
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.masked_gradient import MaskedGradient, make_absent_gradient
from pyro_ebm.training.regularizers import layer_option

__all__ = ["Gradient", "check_num_chains", "check_same_chains", "make_gradient"]

#: What writes the gradients of a run.
Gradient = (
    ConditionalGradient | ClassificationGradient | DeepExactGradient | DeepGradient | MaskedGradient
)


def make_gradient(
    module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine,
    config: TrainerConfig,
    generator: Generator,
) -> Gradient:
    """The object that writes the gradients of a run.

    :raises ValueError: for options that the module does not have.
    """
    if not isinstance(module, nn.DBM):
        _refuse(config, DEEP_ONLY, {}, "a nn.DBM")
    if isinstance(module, nn.NeuralBoltzmannMachine):
        _refuse(
            config,
            RBM_ONLY,
            {"chain_start": "noise", "negative_phase": "trajectory", "missing": "absent"},
            "a nn.RBM",
        )
        return ConditionalGradient(module, config, generator)
    _refuse(config, CONDITIONAL_ONLY, {"chain_start": "prior"}, "conditional models")
    if isinstance(module, nn.DBM):
        _refuse(config, LABELLED_ONLY, {}, "a nn.ClassificationRBM")
        _refuse(config, SHALLOW_ONLY, {"missing": "absent"}, "a nn.RBM")
        _check_layers(module, config)
        if config.negative_phase == "exact":
            return DeepExactGradient(module, config)
        return DeepGradient(module, config, generator)
    if isinstance(module, nn.ClassificationRBM):
        _refuse(config, (), {"missing": "absent"}, "a nn.RBM without labels")
        return ClassificationGradient(module, config, generator)
    _refuse(config, ("objective",), {}, "a nn.ClassificationRBM")
    if config.missing == "absent":
        return make_absent_gradient(module, config, generator)
    if config.negative_phase == "exact":
        return ExactGradient(module, config)
    return ContrastiveGradient(module, config, generator)


def _check_layers(module: nn.DBM, config: TrainerConfig) -> None:
    """Refuse options by layer that are not those of the module's layers, or have no effect."""
    if len(config.layers) not in (0, module.depth):
        raise ValueError(
            f"layers must be options of {module.depth} hidden layers, got {len(config.layers)}"
        )
    for number, options in enumerate(config.layers, start=1):
        if "sparsity_target" in options and not layer_option(config, "sparsity_cost", number):
            raise ValueError(
                f"layers[{number - 1}] has sparsity_target={options['sparsity_target']!r}, which has no "
                "effect without a sparsity_cost"
            )


def _refuse(
    config: TrainerConfig, names: Sequence[str], values: dict[str, str], owner: str
) -> None:
    """Refuse options, or values of options, that another kind of module has."""
    defaults = TrainerConfig()
    for name in names:
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"{name} is an option of {owner}")
    for name, value in values.items():
        if getattr(config, name) == value:
            raise ValueError(f"{name}={value!r} is an option of {owner}")


def check_num_chains(config: TrainerConfig, chains: Tensor | None) -> None:
    """Refuse to go on with another number of chains than there are."""
    count = config.num_chains or config.batch_size
    if config.persistent and chains is not None and len(chains) != count:
        raise ValueError(
            f"the checkpoint has {len(chains)} persistent chains: num_chains must be that, got "
            f"num_chains={config.num_chains!r}, batch_size={config.batch_size!r}"
        )


def check_same_chains(old: TrainerConfig, new: TrainerConfig) -> None:
    """Refuse to go on with chains as what they are not."""
    for name in ("persistent", "num_chains", "negative_phase", "negative_side", "num_replicas"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            raise ValueError(
                f"{name} must stay {before!r}, which made the persistent chains of the checkpoint, "
                f"got {after!r}"
            )
