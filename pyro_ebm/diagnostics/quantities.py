# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers of a draw that show whether chains of a machine mix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM

__all__ = [
    "Function",
    "check_functions",
    "evaluate",
    "leading_direction",
    "machine_functions",
    "magnetisation",
    "principal_component",
    "unit_functions",
]

#: A number of every state, ``(..., V)`` to ``(...)``.
Function = Callable[[Tensor], Tensor]

#: Entries of states that a function is given at once: 64 MiB in float32.
_CHUNK_ENTRIES = 2**24
#: Rows that the principal component is computed from.
_MAX_ROWS = 2000


def evaluate(function: Function, draws: Tensor) -> Tensor:
    """A function of all draws, in chunks along the draws.

    :param function: maps ``(..., V)`` to ``(...)``.
    :param Tensor draws: shape ``(chains, draws, *batch, V)``.
    :returns: shape ``(chains, draws, *batch)``, float64, on the CPU.
    """
    per_draw = max(1, draws.numel() // max(1, draws.shape[1]))
    size = max(1, _CHUNK_ENTRIES // per_draw)
    with torch.no_grad():
        parts = [function(part).double().cpu() for part in draws.split(size, 1)]
    return torch.cat(parts, 1)


def principal_component(draws: Tensor) -> Function | None:
    """Projection onto the direction in which the draws of all chains vary most.

    Where chains sit in different modes, it is the direction between the modes, whatever the modes are.

    :param Tensor draws: shape ``(..., V)``.
    :returns: None if the draws do not vary or are not finite.
    """
    rows = draws.reshape(-1, draws.shape[-1])
    index = torch.linspace(0, len(rows) - 1, min(len(rows), _MAX_ROWS), device=rows.device).long()
    some = rows[index].double()
    some = some - some.mean(0)
    if not bool(some.any()) or not bool(torch.isfinite(some).all()):
        return None
    return _projection(_top_singular_vector(some.T))


def leading_direction(dist: RBM) -> Function:
    """Projection onto the leading left singular vector of the weights, along which machines learn their
    first modes.

    **References**

    [1] *Spectral dynamics of learning in restricted Boltzmann machines*, Aurélien Decelle,
    Giancarlo Fissore, Cyril Furtlehner (2017)
    """
    return _projection(_top_singular_vector(dist.weight.detach().double()))


def machine_functions(dist: RBM, seed: int = 0) -> dict[str, Function]:
    """What samplers of a machine are compared by: the free energy, a random projection (as in [1]) and
    :func:`leading_direction`.

    **References**

    [1] *DISCS: A Benchmark for Discrete Sampling*, Katayoon Goshvadi, Haoran Sun, Xingchao Liu,
    Azade Nova, Ruqi Zhang, Will Grathwohl, Dale Schuurmans, Hanjun Dai (2023)

    :param RBM dist: a machine without batch shape.
    :param int seed: seed of the projection.
    """
    generator = Generator().manual_seed(seed)
    direction = torch.randn(dist.event_shape[0], generator=generator, dtype=torch.float64)
    return {
        "energy": dist.free_energy,
        "projection": _projection(direction / direction.norm()),
        "leading direction": leading_direction(dist),
    }


def _top_singular_vector(matrix: Tensor) -> Tensor:
    """Left singular vector of the largest singular value; its entries have a positive sum."""
    num_rows, num_columns = matrix.shape
    if num_rows <= num_columns:
        vector = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
    else:
        vector = matrix @ torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
    norm = vector.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return vector / (norm if vector.sum() >= 0 else -norm)


def _projection(direction: Tensor) -> Function:
    def project(v: Tensor) -> Tensor:
        # In the precision of the states: a copy of all draws in float64 is not worth it.
        dtype = v.dtype if v.is_floating_point() else torch.float32
        return v.to(dtype) @ direction.to(device=v.device, dtype=dtype)

    return project


def magnetisation(v: Tensor) -> Tensor:
    """Mean state of the units."""
    return v.to(v.dtype if v.is_floating_point() else torch.float32).mean(-1)


def unit_functions(units: Sequence[int], size: int, name: str) -> dict[str, Function]:
    """Single units by number.

    :raises ValueError: if there is no such unit.
    """
    wrong = [u for u in units if not -size <= u < size]
    if wrong:
        raise ValueError(f"units must be between 0 and {size - 1}, got {wrong}")
    return {f"{name}[{u % size}]": _unit(u) for u in units}


def _unit(number: int) -> Function:
    return lambda v: v[..., number]


def check_functions(functions: Mapping[str, Any] | None) -> dict[str, Function]:
    """Functions as a dictionary.

    :raises TypeError: if one cannot be called.
    """
    given = dict(functions or {})
    for name, function in given.items():
        if not callable(function):
            raise TypeError(f"functions[{name!r}] must be callable, got {type(function).__name__}")
    return given
