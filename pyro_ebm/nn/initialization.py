# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the parameters of an RBM start: data statistics, given arrays, another RBM."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import units
from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.unit_parameters import check_seed_and_dtype

if TYPE_CHECKING:
    from pyro_ebm.nn.rbm import RBM

__all__ = [
    "as_array",
    "assign_about",
    "check_rows",
    "init_from_arrays",
    "init_from_data",
    "init_from_rbm",
]

#: How far, relative to the largest entry, the mean of a hidden layer may be from what was asked for.
_MEAN_TOLERANCE = 1e-4


def init_from_data(
    module: "RBM", data: Tensor, hidden_activation: float | Tensor | None = None
) -> "RBM":
    """See :meth:`pyro_ebm.nn.RBM.init_from_data`."""
    data = check_rows(module.weight, data)
    mean = data.mean(0)
    hidden = None
    if hidden_activation is not None:
        hidden = _unit_of_mean(module, hidden_activation)
    module.visible.init_from_data(data)
    if module.centered:
        module.visible_offset.copy_(mean)
    if hidden is not None:
        activation = hidden.mean()
        deviation = mean - module.visible_offset if module.centered else mean
        module.hidden.assign(hidden.tilt(-(deviation @ module.get_parameter("weight")))[0])
        if module.centered:
            module.hidden_offset.copy_(activation)
    return module


def _unit_of_mean(module: "RBM", activation: Any) -> Unit:
    """The hidden layer with a given mean where no field acts on it."""
    num_hidden = module.weight.shape[1]
    target = as_array("hidden_activation", activation, module.weight)
    if target.shape not in ((), (num_hidden,)):
        raise ValueError(
            f"hidden_activation must be a number or have shape ({num_hidden},), "
            f"got shape {tuple(target.shape)}"
        )
    unit: Unit = module.hidden().from_mean(target.expand(num_hidden))
    error = (unit.mean() - target).abs()
    if bool((error > _MEAN_TOLERANCE * target.abs().clamp(min=1.0)).any()):
        worst = int(error.argmax())
        wanted, nearest = target.expand(num_hidden)[worst].item(), unit.mean()[worst].item()
        raise ValueError(
            f"hidden_activation must be a mean of {module.hidden.family} units, got {wanted:.6g}; "
            f"the nearest that they are set to is {nearest:.6g}"
        )
    return unit


def init_from_arrays(
    module: "RBM",
    weight: Any = None,
    visible_bias: Any = None,
    hidden_bias: Any = None,
    *,
    visible_precision: Any = None,
    hidden_precision: Any = None,
    about_offsets: bool = False,
) -> "RBM":
    """See :meth:`pyro_ebm.nn.RBM.init_from_arrays`."""
    own = module.get_parameter("weight")
    if about_offsets and not module.centered:
        raise ValueError("about_offsets needs a module with offsets; make it with centered=True")
    new_weight = own.clone() if weight is None else as_array("weight", weight, own)
    if new_weight.shape != own.shape:
        raise ValueError(
            f"weight must have shape {tuple(own.shape)}, got {tuple(new_weight.shape)}"
        )
    visible = _with_arrays("visible", module.visible(), visible_bias, visible_precision)
    hidden = _with_arrays("hidden", module.hidden(), hidden_bias, hidden_precision)
    if module.centered and not about_offsets:
        if visible_bias is not None:
            visible = visible.tilt(new_weight @ module.hidden_offset)[0]
        if hidden_bias is not None:
            hidden = hidden.tilt(module.visible_offset @ new_weight)[0]
    own.copy_(new_weight)
    module.visible.assign(visible)
    module.hidden.assign(hidden)
    return module


def _with_arrays(side: str, unit: Unit, bias: Any, precision: Any) -> Unit:
    """A layer with the bias (location of Gaussian units) and precision that were given."""
    values = {}
    for name, array in (("bias", bias), ("precision", precision)):
        if array is None:
            continue
        value = as_array(f"{side}_{name}", array, unit.natural_bias)
        shapes = _layer_shapes(unit)
        if tuple(value.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{side}_{name} must have shape {expected}, got {tuple(value.shape)}")
        values[name] = value.flatten()
    if "precision" in values and not bool((values["precision"] > 0.0).all()):
        least = values["precision"].min().item()
        raise ValueError(f"{side}_precision must be positive, got {least}")
    return _replaced(side, unit, values)


def _layer_shapes(unit: Unit) -> list[tuple[int, ...]]:
    """Shapes that an array of a layer may have: flat, and by group."""
    flat = (unit.size,)
    own = tuple(unit.parameters["bias"].shape) if "bias" in unit.parameters else flat
    return [flat] if own == flat else [flat, own]


def _replaced(side: str, unit: Unit, values: dict[str, Tensor]) -> Unit:
    """A layer with other parameters, given as flat vectors."""
    if isinstance(unit, units.Mixed):
        blocks = []
        for entries, part in unit.parts():
            own = {name: value[entries] for name, value in values.items()}
            if "precision" not in part.parameters:
                own.pop("precision", None)
            blocks.append(_replaced(side, part, own))
        return units.Mixed(blocks)
    if "precision" in values and "precision" not in unit.parameters:
        raise ValueError(
            f"{side}_precision is for Gaussian and rectified layers, "
            f"the {side} layer is {type(unit).__name__}"
        )
    renamed = {
        "loc" if n == "bias" and "loc" in unit.parameters else n: v for n, v in values.items()
    }
    return unit.replace(
        **{name: value.reshape(unit.parameters[name].shape) for name, value in renamed.items()}
    )


def init_from_rbm(
    module: "RBM", other: "RBM", *, extra_scale: float | None = None, seed: int | None = None
) -> "RBM":
    """See :meth:`pyro_ebm.nn.RBM.init_from_rbm`."""
    scale = module.weight_scale if extra_scale is None else extra_scale
    if not isinstance(scale, int | float) or not 0.0 <= scale < math.inf:
        raise ValueError(f"extra_scale must be a number >= 0, got {scale!r}")
    check_seed_and_dtype(seed, None)
    _check_same_kind(module, other)
    weight = module.get_parameter("weight")
    num_known = other.weight.shape[1]
    _copy_layer(module.visible, other.visible)
    _copy_layer(module.hidden, other.hidden)
    generator = None
    if seed is not None:
        generator = Generator(device=weight.device).manual_seed(seed)
    weight[:, :num_known].copy_(other.weight)
    weight[:, num_known:].normal_(0.0, scale, generator=generator)
    visible_offset, hidden_offset = _reference_points(module, other, num_known)
    # Biases of the other machine's units hold about its offset, those of further units about ours.
    field = (visible_offset - _offset_of(other).to(weight)) @ weight
    field[num_known:] = 0.0
    hidden: Unit = module.hidden()
    if bool(field.any()):
        hidden = hidden.tilt(field)[0]
    assign_about(module, module.visible(), hidden, visible_offset, hidden_offset)
    return module


def _offset_of(module: "RBM") -> Tensor:
    """The visible offset, zeros for a module without."""
    if module.centered:
        return module.get_buffer("visible_offset")
    return module.weight.new_zeros(module.weight.shape[0])


def _reference_points(module: "RBM", other: "RBM", num_known: int) -> tuple[Tensor, Tensor]:
    """Visible and hidden states about which the units that were copied or added have their biases.

    A centred module takes over offsets, if there are any, and those of further units are their means:
    to first order these leave the visible layer alone.
    """
    points = module.hidden().mean()
    points[:num_known] = other.hidden_offset.to(points) if other.centered else 0.0
    if module.centered:
        if other.centered:
            module.visible_offset.copy_(other.visible_offset)
            module.hidden_offset[:num_known].copy_(other.hidden_offset)
        module.hidden_offset[num_known:].copy_(points[num_known:])
    return _offset_of(module), points


def assign_about(
    module: "RBM", visible: Unit, hidden: Unit, visible_offset: Tensor, hidden_offset: Tensor
) -> None:
    """Store layers whose biases hold about the given offsets; the module keeps its own ones.

    The weight must be in its place already, as biases are moved by what it exerts.
    """
    weight = module.get_parameter("weight")
    if module.centered:
        visible_offset = visible_offset - module.visible_offset
        hidden_offset = hidden_offset - module.hidden_offset
    # Nothing is rounded where offsets agree.
    if bool(hidden_offset.any()):
        visible = visible.tilt(-(weight @ hidden_offset))[0]
    if bool(visible_offset.any()):
        hidden = hidden.tilt(-(visible_offset @ weight))[0]
    module.visible.assign(visible)
    module.hidden.assign(hidden)


def _copy_layer(own: torch.nn.Module, other: torch.nn.Module) -> None:
    """Copy the stored tensors, bit by bit; those of further units stay as they are."""
    stored = own.state_dict()
    for name, value in other.state_dict().items():
        stored[name][: len(value)].copy_(value)


def _check_same_kind(module: "RBM", other: "RBM") -> None:
    for side in ("visible", "hidden"):
        own, theirs = getattr(module, side), getattr(other, side)
        if own.family != theirs.family:
            raise ValueError(
                f"the {side} layer is {own.family}, that of the other machine {theirs.family}"
            )
        for name in ("num_states", "total_count"):
            if own.options.get(name) != theirs.options.get(name):
                raise ValueError(
                    f"{name} of the {side} layer is {own.options.get(name)}, "
                    f"that of the other machine {theirs.options.get(name)}"
                )
        if own.state_dict().keys() != theirs.state_dict().keys():
            raise ValueError(f"the {side} layers of the two machines are of different kinds")
    visible, hidden = module.weight.shape
    if other.weight.shape[0] != visible:
        raise ValueError(
            f"the other machine has {other.weight.shape[0]} visible entries, this one {visible}"
        )
    shapes = [[t.shape for t in m.visible.state_dict().values()] for m in (module, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the blocks of the visible layers of the two machines differ in their sizes"
        )
    if other.weight.shape[1] > hidden:
        raise ValueError(
            f"the other machine has {other.weight.shape[1]} hidden entries, more than {hidden}"
        )
    if module.hidden.family == "multinomial" and other.weight.shape[1] != hidden:
        raise ValueError(
            "a multinomial layer is one unit, to which none can be added: the other machine has "
            f"{other.weight.shape[1]} states, this one {hidden}"
        )


def as_array(name: str, array: Any, like: Tensor) -> Tensor:
    """A tensor of the type and device of another one.

    :raises TypeError: if it is no array of real numbers.
    :raises ValueError: if it holds NaN or infinite values.
    """
    try:
        # By way of numpy numbers of Python keep their float64.
        value = array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor, an array or a number, got {type(array).__name__}"
        ) from error
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    value = value.detach().to(like)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return value


def check_rows(weight: Tensor, data: Any) -> Tensor:
    """Rows of data in the type and on the device of a module's lowest weight.

    :raises TypeError: if the data is no tensor.
    :raises ValueError: if the shape is wrong or the data holds NaN.
    """
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor, got {type(data).__name__}")
    num_visible = weight.shape[0]
    if data.dim() != 2 or data.shape[1] != num_visible or len(data) == 0:
        raise ValueError(
            f"data must have shape (rows >= 1, {num_visible}), got {tuple(data.shape)}"
        )
    data = data.to(weight)
    if not bool(torch.isfinite(data).all()):
        raise ValueError("data holds NaN or infinite values")
    return data
