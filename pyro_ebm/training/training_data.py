# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a model is trained on: checked once, turned into states at every visit."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.infer.conditional.contexts import evaluating
from pyro_ebm.ops.random import bernoulli
from pyro_ebm.training.config import TrainerConfig

__all__ = ["TrainingData", "check_data_options", "draw_states"]

Module = nn.RBM | nn.NeuralBoltzmannMachine


@dataclass(frozen=True)
class TrainingData:
    """Rows and their contexts.

    :param Tensor rows: shape ``(rows, V)``, on the device of the module.
    :param Tensor context: shape ``(rows, num_context)``, None for a model without.
    :param Tensor observed: which entries are observed, shape ``(rows, V)``; None for all. The others have
        been filled with possible values.
    """

    rows: Tensor
    context: Tensor | None
    observed: Tensor | None = None

    @classmethod
    def check(
        cls,
        name: str,
        module: Module,
        config: TrainerConfig,
        rows: Tensor,
        context: Tensor | None,
        observed: Tensor | None = None,
    ) -> "TrainingData":
        """The data of a run.

        :param str name: what the rows are called in messages.
        :raises TypeError: if rows, contexts or what is observed are no tensors.
        :raises ValueError: for a wrong shape, NaN, or values outside of the support.
        """
        num_visible = _num_visible(module)
        _check_tensor(name, rows)
        if rows.dim() != 2 or rows.shape[1] != num_visible or len(rows) == 0:
            raise ValueError(
                f"{name} must have shape (rows >= 1, {num_visible}), got {tuple(rows.shape)}"
            )
        context = _check_context(name, module, rows, context)
        # Networks may not take contexts that are made up: one of the data, on the module's device.
        example = None if context is None else context[:1].to(next(module.parameters()).device)
        if observed is not None:
            rows = _fill(module, config, rows, observed, example)
        valid, what = _valid_rows(module, config, rows, example)
        if not bool(valid.all()):
            bad = int((~valid).sum())
            raise ValueError(f"{name} has {bad} of {len(rows)} rows outside of {what}")
        parameter = next(module.parameters())
        if observed is not None:
            observed = observed.to(parameter.device)
        return cls(rows.to(parameter.device), context, observed)


def draw_states(
    rows: Tensor, module: Module, config: TrainerConfig, generator: Generator
) -> Tensor:
    """Rows of the data as states of the visible layer: new bits, spins or noise where asked for.

    :param Tensor rows: shape ``(rows, V)``, of the module's dtype and device.
    """
    if config.binarize:
        rows = bernoulli(rows, generator)
        if _family(module) == "ising":
            rows = 2.0 * rows - 1.0
    if config.noise_std:
        noise = torch.empty_like(rows).normal_(generator=generator)
        rows = torch.add(rows, noise, alpha=config.noise_std)
    return rows


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _fill(
    module: Module,
    config: TrainerConfig,
    rows: Tensor,
    observed: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Rows with possible values in the places of missing ones.

    :param Tensor context: a context of the data, shape ``(1, num_context)``.
    """
    if isinstance(module, nn.RBM):
        raise ValueError("observed is an option of conditional models, not of a nn.RBM")
    _check_tensor("observed", observed)
    assert context is not None
    if observed.shape != rows.shape:
        raise ValueError(
            f"observed must have shape {tuple(rows.shape)}, got {tuple(observed.shape)}"
        )
    with evaluating(module):
        machine = module.condition(context)
        # Checks that whole units are observed or missing; rates are no states, and checked later.
        here = rows.to(machine.weight)
        ObservedRows(machine, here, observed.to(here.device), validate=not config.binarize)
        if config.binarize:
            filler = torch.full_like(here, 0.5)
        else:
            # A generator of its own: these are placeholders, and no part of the run.
            bits = Generator(device=here.device).manual_seed(0)
            filler = machine.visible.sample(torch.zeros_like(here), bits)
    return torch.where(observed, rows, filler.to(rows))


def check_data_options(module: Module, config: TrainerConfig) -> None:
    """Refuse ways to draw states that the visible layer does not have.

    :raises ValueError: if there are such.
    """
    family = _family(module)
    if config.binarize and family in ("categorical", "multinomial", "mixed"):
        raise ValueError(f"binarize=True draws bits, which are no states of {family!r} units")
    if config.noise_std and family not in ("gaussian", "low-rank-gaussian"):
        raise ValueError(f"noise_std is an option of Gaussian visible units, not of {family!r}")


def _family(module: Module) -> str:
    return module.visible.family if isinstance(module, nn.RBM) else module.visible_family


def _num_visible(module: Module) -> int:
    if isinstance(module, nn.RBM):
        return int(module.get_parameter("weight").shape[0])
    return module.num_visible


def _valid_rows(
    module: Module, config: TrainerConfig, rows: Tensor, context: Tensor | None
) -> tuple[Tensor, str]:
    """Which rows can be states, and in words what they must be."""
    family = _family(module)
    if config.binarize:
        return ((rows >= 0) & (rows <= 1)).all(-1), "[0, 1], which binarize=True needs"
    if isinstance(module, nn.RBM):
        support = module.visible().support
    else:
        assert context is not None
        with evaluating(module):
            support = module.visible_unit(context).support
    valid = support.check(rows) & torch.isfinite(rows).all(-1)
    return valid, f"the support of {family!r} units or not finite ({support})"


def _check_context(
    name: str, module: Module, rows: Tensor, context: Tensor | None
) -> Tensor | None:
    label = "context" if name == "data" else f"{name}_context"
    if isinstance(module, nn.RBM):
        if context is not None:
            raise ValueError(f"{label} is given, but an RBM has no context")
        return None
    if context is not None:
        _check_tensor(label, context)
    expected = (len(rows), module.num_context)
    if context is None or context.shape != expected:
        got = None if context is None else tuple(context.shape)
        raise ValueError(f"{label} must have shape {expected}, got {got}")
    if not bool(torch.isfinite(context).all()):
        raise ValueError(f"{label} holds NaN or infinite values")
    return context
