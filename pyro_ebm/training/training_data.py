# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a model is trained on: checked once, turned into states at every visit."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import units
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.infer.conditional.contexts import evaluating
from pyro_ebm.ops.random import bernoulli
from pyro_ebm.training.config import TrainerConfig

__all__ = ["TrainingData", "check_data_options", "draw_states"]

Module = nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine
_BITS = ("bernoulli", "ising")


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
        rows = _draw_bits(rows, module, generator)
    if config.noise_std:
        noise = torch.empty_like(rows).normal_(generator=generator)
        rows = torch.add(rows, noise, alpha=config.noise_std)
    return rows


def _draw_bits(rows: Tensor, module: Module, generator: Generator) -> Tensor:
    """Bits or spins of their rates; blocks of a mixed layer of other families stay as they are."""
    blocks = _bit_blocks(module)
    if len(blocks) == 1 and blocks[0][0] == slice(0, rows.shape[-1]):
        bits = bernoulli(rows, generator)
        return 2.0 * bits - 1.0 if blocks[0][1] else bits
    rows = rows.clone()
    for entries, spins in blocks:
        bits = bernoulli(rows[..., entries], generator)
        rows[..., entries] = 2.0 * bits - 1.0 if spins else bits
    return rows


def _bit_blocks(module: Module) -> list[tuple[slice, bool]]:
    """Entries that ``binarize`` makes bits of, and whether these are spins."""
    family = _family(module)
    if family != "mixed":
        # Bits are real numbers too.
        bits = family not in ("categorical", "multinomial")
        return [(slice(0, _num_visible(module)), family == "ising")] if bits else []
    found: list[tuple[slice, bool]] = []
    _collect_bits(_visible_options(module), 0, found)
    return found


def _visible_options(module: Module) -> Any:
    layer: Any = (
        module._visible if isinstance(module, nn.NeuralBoltzmannMachine) else module.visible
    )
    return layer.options


def _collect_bits(options: Any, start: int, found: list[tuple[slice, bool]]) -> None:
    """The blocks of bits and spins of a mixed layer that begins at an entry."""
    for block in options["blocks"]:
        if block["family"] in _BITS:
            found.append((slice(start, start + block["size"]), block["family"] == "ising"))
        elif block["family"] == "mixed":
            _collect_bits(block["options"], start, found)
        start += block["size"]


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
    if isinstance(module, nn.DBM):
        raise ValueError("observed is no option of a nn.DBM")
    if isinstance(module, nn.ClassificationRBM):
        raise ValueError(
            "observed is no option of a nn.ClassificationRBM; a row without a label has zeros for it"
        )
    _check_tensor("observed", observed)
    if observed.shape != rows.shape:
        raise ValueError(
            f"observed must have shape {tuple(rows.shape)}, got {tuple(observed.shape)}"
        )
    with evaluating(module):
        machine = module() if context is None else module.condition(context)
        here = rows.to(machine.weight)
        # A generator of its own: these are placeholders, and no part of the run.
        bits = Generator(device=here.device).manual_seed(0)
        filler = machine.visible.sample(torch.zeros_like(here), bits)
        states = here
        if config.binarize:
            states = here.clone()
            for entries, _ in _bit_blocks(module):
                filler[..., entries] = 0.5
                # Rates are no states, and checked later.
                states[..., entries] = 1.0
        # Checks that whole units are observed or missing.
        ObservedRows(machine, states, observed.to(here.device), validate=True)
    return torch.where(observed, rows, filler.to(rows))


def check_data_options(module: Module, config: TrainerConfig) -> None:
    """Refuse ways to draw states that the visible layer does not have.

    :raises ValueError: if there are such.
    """
    family = _family(module)
    if config.binarize and not _bit_blocks(module):
        what = "any block of mixed" if family == "mixed" else repr(family)
        raise ValueError(f"binarize=True draws bits, which are no states of {what} units")
    if config.noise_std and family not in ("gaussian", "low-rank-gaussian"):
        raise ValueError(f"noise_std is an option of Gaussian visible units, not of {family!r}")


def _family(module: Module) -> str:
    if isinstance(module, nn.NeuralBoltzmannMachine):
        return module.visible_family
    return module.visible.family


def _num_visible(module: Module) -> int:
    if isinstance(module, nn.NeuralBoltzmannMachine):
        return module.num_visible
    weight = module.weights[0] if isinstance(module, nn.DBM) else module.get_parameter("weight")
    return int(weight.shape[0])


def _valid_rows(
    module: Module, config: TrainerConfig, rows: Tensor, context: Tensor | None
) -> tuple[Tensor, str]:
    """Which rows can be states, and in words what they must be."""
    family = _family(module)
    if config.binarize and family != "mixed":
        return ((rows >= 0) & (rows <= 1)).all(-1), "[0, 1], which binarize=True needs"
    if not isinstance(module, nn.NeuralBoltzmannMachine):
        layer = module.visible()
    else:
        assert context is not None
        with evaluating(module):
            layer = module.visible_unit(context)
    if family != "mixed":
        valid = layer.support.check(rows) & torch.isfinite(rows).all(-1)
        return valid, f"the support of {family!r} units or not finite ({layer.support})"
    valid = torch.isfinite(rows).all(-1)
    for entries, block in layer.parts():
        valid = valid & _valid_part(module, config, entries, block, rows)
    what = f"the support of 'mixed' units or not finite ({layer.support})"
    if config.binarize:
        what += ", where bits and spins are rates in [0, 1], which binarize=True needs"
    return valid, what


def _valid_part(
    module: Module, config: TrainerConfig, entries: slice, block: units.Unit, rows: Tensor
) -> Tensor:
    """Which rows can be states in one block of a mixed layer."""
    part = rows[..., entries]
    bits = isinstance(block, units.Bernoulli | units.Ising)
    if config.binarize and bits:
        return ((part >= 0) & (part <= 1)).all(-1)
    valid = block.support.check(part)
    if not isinstance(module, nn.ClassificationRBM):
        return valid
    if entries.start == module.num_inputs:
        # Rows of which the class is not known.
        return valid | (part == 0).all(-1)
    if bits and config.objective != "generative":
        # p(y | x) is a function of grey levels too; the generative part takes them for states, as that
        # of Larochelle and Bengio (2008) does.
        low = -1.0 if isinstance(block, units.Ising) else 0.0
        return ((part >= low) & (part <= 1)).all(-1)
    return valid


def _check_context(
    name: str, module: Module, rows: Tensor, context: Tensor | None
) -> Tensor | None:
    label = "context" if name == "data" else f"{name}_context"
    if not isinstance(module, nn.NeuralBoltzmannMachine):
        if context is not None:
            name = type(module).__name__
            raise ValueError(f"{label} is given, but a machine of class {name} has no context")
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
