# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the parameters of a deep machine start: data statistics, a machine, a stack of machines."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.initialization import check_rows
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.nn.unit_parameters import UnitParameters, check_seed_and_dtype

if TYPE_CHECKING:
    from pyro_ebm.nn.dbm import DBM

__all__ = ["init_from_data", "init_from_rbm", "init_from_rbms", "layer_of", "without_offsets"]


def init_from_data(module: "DBM", data: Tensor) -> "DBM":
    """See :meth:`pyro_ebm.nn.DBM.init_from_data`."""
    data = check_rows(module.weights[0], data)
    module.visible.init_from_data(data)
    if module.centered:
        module.offsets[0].copy_(data.mean(0))
    return module


def init_from_rbm(module: "DBM", rbm: RBM, upper_scale: float, seed: int | None) -> "DBM":
    """See :meth:`pyro_ebm.nn.DBM.init_from_rbm`."""
    if not isinstance(upper_scale, int | float) or not 0.0 <= upper_scale < math.inf:
        raise ValueError(f"upper_scale must be a number >= 0, got {upper_scale!r}")
    check_seed_and_dtype(seed, None)
    _check_modules(module, [rbm])
    units: list[Unit] = [layer() for layer in module.layers]
    first, second = rbm().canonical(), rbm()
    units[0] = _with_bias(second.visible, first.visible_bias)
    units[1] = _with_bias(second.hidden, first.hidden_bias)
    # Layers above keep the biases that they had without couplings, of the weights and offsets of before.
    for number in range(2, len(units)):
        units[number] = without_offsets(module, number)
    generator = None
    if seed is not None:
        generator = Generator(device=module.weights[0].device).manual_seed(seed)
    weights: list[Tensor] = [rbm.get_parameter("weight")]
    for weight in module.weights[1:]:
        weights.append(torch.empty_like(weight).normal_(0.0, upper_scale, generator=generator))
    if module.centered and rbm.centered:
        for own, theirs in zip(
            module.offsets, (rbm.visible_offset, rbm.hidden_offset), strict=False
        ):
            own.copy_(theirs)
    return _assign(module, units, weights)


def init_from_rbms(
    module: "DBM",
    modules: Sequence[RBM],
    doubled: Sequence[bool] | None,
    lower_share: float = 0.5,
) -> "DBM":
    """See :meth:`pyro_ebm.nn.DBM.init_from_rbms`."""
    if not isinstance(lower_share, int | float) or not 0.0 <= lower_share <= 1.0:
        raise ValueError(f"lower_share must be a number in [0, 1], got {lower_share!r}")
    modules = [rbm.untied() if isinstance(rbm, TiedRBM) else rbm for rbm in modules]
    _check_modules(module, modules)
    depth = module.depth
    if len(modules) != depth:
        raise ValueError(f"modules must be {depth} machines, got {len(modules)}")
    whole = [number in (0, depth - 1) for number in range(depth)] if doubled is None else doubled
    if len(whole) != depth:
        raise ValueError(f"doubled must have {depth} entries, got {len(whole)}")
    machines = [rbm() for rbm in modules]
    forms = [machine.canonical() for machine in machines]
    units = [_with_bias(machines[0].visible, forms[0].visible_bias)]
    for lower, upper in zip(range(depth - 1), range(1, depth), strict=True):
        mean = torch.lerp(forms[upper].visible_bias, forms[lower].hidden_bias, lower_share)
        units.append(_with_bias(machines[lower].hidden, mean))
    units.append(_with_bias(machines[-1].hidden, forms[-1].hidden_bias))
    weights = [
        form.weight if keep else 0.5 * form.weight for form, keep in zip(forms, whole, strict=True)
    ]
    if module.centered:
        for number, rbm in enumerate(modules):
            if rbm.centered:
                module.offsets[number].copy_(rbm.visible_offset)
                module.offsets[number + 1].copy_(rbm.hidden_offset)
    return _assign(module, units, weights)


def _assign(module: "DBM", units: list[Unit], weights: Sequence[Tensor]) -> "DBM":
    """Store layers whose biases hold without offsets, and weights."""
    for own, weight in zip(module.weights, weights, strict=True):
        own.copy_(weight)
    for number, unit in enumerate(units):
        if module.centered:
            unit = unit.tilt(_pull(module, number))[0]
        layer_of(module, number).assign(unit)
    return module


def without_offsets(module: "DBM", number: int) -> Unit:
    """A layer with the bias that it has in the form without offsets."""
    unit: Unit = module.layers[number]()
    return unit.tilt(-_pull(module, number))[0] if module.centered else unit


def _pull(module: "DBM", number: int) -> Tensor:
    """The field of the offsets of the neighbours of a layer."""
    pull = torch.zeros_like(module.offsets[number])
    if number > 0:
        pull = pull + module.offsets[number - 1] @ module.weights[number - 1]
    if number < module.depth:
        pull = pull + module.weights[number] @ module.offsets[number + 1]
    return pull


def layer_of(module: "DBM", number: int) -> UnitParameters:
    """A layer of a module by its number, 0 for the visible one."""
    layer = module.layers[number]
    assert isinstance(layer, UnitParameters)
    return layer


def _with_bias(unit: Unit, bias: Tensor) -> Unit:
    """A layer with another natural bias."""
    return unit.tilt(bias - unit.natural_bias)[0]


def _check_modules(module: "DBM", modules: Sequence[Any]) -> None:
    """Refuse machines that are not those of the layers, from the bottom."""
    for number, rbm in enumerate(modules):
        if not isinstance(rbm, RBM):
            raise TypeError(f"machine {number} must be a pyro_ebm.nn.RBM, got {type(rbm).__name__}")
        if number >= module.depth:
            raise ValueError(f"there are {module.depth} weights, got {len(modules)} machines")
        for side, layer in (("visible", number), ("hidden", number + 1)):
            own, theirs = layer_of(module, layer), getattr(rbm, side)
            states = [
                x.options.get(n) for n in ("num_states", "total_count") for x in (own, theirs)
            ]
            same = own.family == theirs.family and states[0::2] == states[1::2]
            size = rbm.weight.shape[0 if side == "visible" else 1]
            if not same or module.sizes[layer] != size:
                raise ValueError(
                    f"layer {layer} is {module.sizes[layer]} {own.family} entries, the {side} layer of "
                    f"machine {number} {size} {theirs.family}"
                )
