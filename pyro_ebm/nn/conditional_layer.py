# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Layers whose parameters are outputs of networks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ebm.distributions import units
from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.networks import soft_clamp
from pyro_ebm.nn.unit_parameters import is_whole

__all__ = ["LAYERS", "ConditionalLayer", "make_layer"]

#: How far means of one-hot groups or counts may sum from their total, relative to it: means of float32.
_TOTAL_TOLERANCE = 1e-3


class ConditionalLayer(ABC):
    """Makes a layer of units from what networks give.

    :param int size: entries of the layer (one-hot groups flattened).
    :param options: options of the family; :attr:`defaults` names them (None: required).
    :raises ValueError: for unknown, missing or impossible options.
    """

    #: Options with their defaults, None where one is required.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: The option that must be a whole number >= 1, if there is one.
    whole: ClassVar[str | None] = None
    #: Smallest and largest entry of a state.
    limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"unknown options {unknown} of {type(self).__name__}; known: {sorted(self.defaults)}"
            )
        self.size = size
        self.options = {**self.defaults, **options}
        if self.whole is not None and not is_whole(self.options[self.whole]):
            got = self.options[self.whole]
            raise ValueError(f"{self.whole} must be a whole number >= 1, got {got!r}")

    @property
    @abstractmethod
    def outputs(self) -> dict[str, int]:
        """Number of entries that each network gives, by its name."""

    @abstractmethod
    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        """The layer.

        :param values: what the networks gave, shape ``(..., entries)``, by name.
        """

    def offset(self, values: Mapping[str, Tensor], centre: Tensor | None) -> Tensor | None:
        """The offset of the layer in its couplings: the energy's own one, or else the centre.

        :param values: what the networks gave.
        :param Tensor centre: mean states, shape ``(..., size)``, None for none.
        """
        return centre

    @property
    def has_own_offset(self) -> bool:
        """Whether the energy of the family defines the offset of all entries."""
        return False

    def in_range(self, rows: Tensor) -> Tensor:
        """Which rows can be states or means of states, shape ``(rows,)``."""
        low, high = self.limits
        return ((rows >= low) & (rows <= high)).all(-1)


class _Linear(ConditionalLayer):
    """Families whose only parameter is a natural bias."""

    @property
    def outputs(self) -> dict[str, int]:
        return {"bias": self.size}


class _Spins(ConditionalLayer):
    r"""Ising and Bernoulli layers by their natural bias b, or in the quadratic form of the paper,
    :math:`(x - \mu)^\top P (x - \mu) / 2`, which is a bias of :math:`P\mu` or :math:`P(\mu - 1/2)`
    and an offset of :math:`\mu`; by default :math:`\mu` is a tanh (a sigmoid) of what its network gives."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "form": "natural",
        "bounded_loc": True,
        "min_precision": 1e-3,
        "max_precision": 1e3,
        "bound": "soft",
    }

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        super().__init__(size, options)
        if self.options["form"] not in ("natural", "quadratic"):
            raise ValueError(f"form must be 'natural' or 'quadratic', got {self.options['form']!r}")
        if not isinstance(self.options["bounded_loc"], bool):
            raise ValueError(f"bounded_loc must be a bool, got {self.options['bounded_loc']!r}")
        check_bounds(self.options)

    @property
    def quadratic(self) -> bool:
        return bool(self.options["form"] == "quadratic")

    @property
    def outputs(self) -> dict[str, int]:
        names = ("loc", "log_precision") if self.quadratic else ("bias",)
        return dict.fromkeys(names, self.size)

    def offset(self, values: Mapping[str, Tensor], centre: Tensor | None) -> Tensor | None:
        return self._bounded(values["loc"]) if self.quadratic else centre

    @property
    def has_own_offset(self) -> bool:
        return self.quadratic

    def _bounded(self, value: Tensor) -> Tensor:
        return self._loc(value) if self.options["bounded_loc"] else value

    @abstractmethod
    def _loc(self, value: Tensor) -> Tensor:
        """What a network gives, within the range of means."""

    def _quadratic_bias(self, values: Mapping[str, Tensor], centre: float) -> Tensor:
        loc = self._bounded(values["loc"])
        return precision(values["log_precision"], self.options) * (loc - centre)


class _Ising(_Spins):
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        bias = self._quadratic_bias(values, 0.0) if self.quadratic else values["bias"]
        return units.Ising(bias, validate_args=False)

    def _loc(self, value: Tensor) -> Tensor:
        return torch.tanh(value)


class _Bernoulli(_Spins):
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        bias = self._quadratic_bias(values, 0.5) if self.quadratic else values["bias"]
        return units.Bernoulli(bias, validate_args=False)

    def _loc(self, value: Tensor) -> Tensor:
        return torch.sigmoid(value)


class _Categorical(_Linear):
    defaults: ClassVar[Mapping[str, Any]] = {"num_states": None}
    whole: ClassVar[str | None] = "num_states"
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        super().__init__(size, options)
        if size % self.options["num_states"]:
            raise ValueError(
                f"{size} entries are no whole number of groups of "
                f"num_states={self.options['num_states']}"
            )

    def in_range(self, rows: Tensor) -> Tensor:
        groups = rows.unflatten(-1, (-1, self.options["num_states"]))
        return super().in_range(rows) & _sums_to(groups, 1).all(-1)

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        bias = values["bias"].unflatten(-1, (-1, self.options["num_states"]))
        return units.Categorical(bias, validate_args=False)


class _Multinomial(_Linear):
    defaults: ClassVar[Mapping[str, Any]] = {"total_count": None}
    whole: ClassVar[str | None] = "total_count"

    def in_range(self, rows: Tensor) -> Tensor:
        return (rows >= 0).all(-1) & _sums_to(rows, self.options["total_count"])

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        return units.Multinomial(values["bias"], self.options["total_count"], validate_args=False)


class _Gaussian(ConditionalLayer):
    defaults: ClassVar[Mapping[str, Any]] = {
        "min_precision": 1e-3,
        "max_precision": 1e3,
        "bound": "soft",
    }

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        super().__init__(size, options)
        check_bounds(self.options)

    @property
    def outputs(self) -> dict[str, int]:
        return {"loc": self.size, "log_precision": self.size}

    def offset(self, values: Mapping[str, Tensor], centre: Tensor | None) -> Tensor | None:
        return values["loc"]

    @property
    def has_own_offset(self) -> bool:
        return True

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        value = precision(values["log_precision"], self.options)
        return units.Gaussian(values["loc"], value, validate_args=False)


class _LowRankGaussian(_Gaussian):
    defaults: ClassVar[Mapping[str, Any]] = {**_Gaussian.defaults, "rank": None}
    whole: ClassVar[str | None] = "rank"

    @property
    def outputs(self) -> dict[str, int]:
        return {**super().outputs, "cov_factor": self.size * self.options["rank"]}

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        factor = values["cov_factor"].unflatten(-1, (self.size, self.options["rank"]))
        value = precision(values["log_precision"], self.options)
        return units.LowRankGaussian(values["loc"], value, factor, validate_args=False)


class _Mixed(ConditionalLayer):
    """Blocks of several families; the networks of block i have names that end in ``_i``."""

    defaults: ClassVar[Mapping[str, Any]] = {"blocks": None}

    def __init__(self, size: int, options: Mapping[str, Any]) -> None:
        super().__init__(size, options)
        blocks = self.options["blocks"]
        if not isinstance(blocks, Sequence) or not blocks or not all(map(_is_block, blocks)):
            raise ValueError(
                "blocks must be a list of {'family': ..., 'size': ..., 'options': {...}}, "
                f"got {blocks!r}"
            )
        self.blocks = [make_layer(b["family"], b["size"], b.get("options", {})) for b in blocks]
        total = sum(block.size for block in self.blocks)
        if total != size:
            raise ValueError(f"the blocks have {total} entries, but the layer has {size}")

    @property
    def outputs(self) -> dict[str, int]:
        return {
            f"{name}_{i}": width
            for i, block in enumerate(self.blocks)
            for name, width in block.outputs.items()
        }

    def _own(self, values: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
        return {name: values[f"{name}_{i}"] for name in self.blocks[i].outputs}

    def unit(self, values: Mapping[str, Tensor]) -> Unit:
        made = [block.unit(self._own(values, i)) for i, block in enumerate(self.blocks)]
        return units.Mixed(made)

    def offset(self, values: Mapping[str, Tensor], centre: Tensor | None) -> Tensor | None:
        sizes = [block.size for block in self.blocks]
        centres = [None] * len(sizes) if centre is None else centre.split(sizes, -1)
        offsets = [
            block.offset(self._own(values, i), centres[i]) for i, block in enumerate(self.blocks)
        ]
        given = next((offset for offset in offsets if offset is not None), None)
        if given is None:
            return None
        return torch.cat(
            [
                given.new_zeros(*given.shape[:-1], size) if offset is None else offset
                for offset, size in zip(offsets, sizes, strict=True)
            ],
            -1,
        )

    @property
    def has_own_offset(self) -> bool:
        return all(block.has_own_offset for block in self.blocks)

    def in_range(self, rows: Tensor) -> Tensor:
        parts = rows.split([block.size for block in self.blocks], -1)
        found = [block.in_range(x) for block, x in zip(self.blocks, parts, strict=True)]
        return torch.stack(found).all(0)


#: Families by name.
LAYERS: dict[str, type[ConditionalLayer]] = {
    "bernoulli": _Bernoulli,
    "ising": _Ising,
    "categorical": _Categorical,
    "multinomial": _Multinomial,
    "gaussian": _Gaussian,
    "low-rank-gaussian": _LowRankGaussian,
    "mixed": _Mixed,
}


def make_layer(family: str, size: Any, options: Mapping[str, Any]) -> ConditionalLayer:
    """A layer by the name of its family.

    :raises ValueError: for an unknown family or impossible options.
    """
    if family not in LAYERS:
        raise ValueError(f"unknown unit family {family!r}; choose from {sorted(LAYERS)}")
    if not is_whole(size):
        raise ValueError(f"size of a layer must be a whole number >= 1, got {size!r}")
    return LAYERS[family](size, options)


def precision(log_precision: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Precision from its logarithm, within the bounds of the options."""
    low, high = math.log(options["min_precision"]), math.log(options["max_precision"])
    if options["bound"] == "hard":
        return log_precision.clamp(low, high).exp()
    return soft_clamp(log_precision, low, high).exp()


def check_bounds(options: Mapping[str, Any]) -> None:
    """Check the options that bound a precision.

    :raises ValueError: if they are impossible.
    """
    low, high, bound = (options[name] for name in ("min_precision", "max_precision", "bound"))
    numbers = all(isinstance(x, int | float) and math.isfinite(x) for x in (low, high))
    if not (numbers and 0 < low < high):
        raise ValueError(
            f"0 < min_precision < max_precision must hold and be finite, got {low!r}, {high!r}"
        )
    if bound not in ("soft", "hard"):
        raise ValueError(f"bound must be 'soft' or 'hard', got {bound!r}")


def _is_block(block: Any) -> bool:
    known = {"family", "size", "options"}
    return isinstance(block, Mapping) and {"family", "size"} <= set(block) <= known


def _sums_to(rows: Tensor, total: int) -> Tensor:
    """Whether the last axis sums to a total."""
    return (rows.sum(-1) - total).abs() <= _TOTAL_TOLERANCE * total
