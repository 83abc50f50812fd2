# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The mean field of a deep machine's hidden layers given its visible one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ebm.distributions.mean_field import MeanFieldSolver
from pyro_ebm.ops.layers import alternate

if TYPE_CHECKING:
    from pyro_ebm.distributions.dbm import DBM

__all__ = ["MeanField", "MeanFieldWarning", "check_options", "solve_mean_field"]


class MeanFieldWarning(UserWarning):
    """Mean field has not converged in some rows."""


@dataclass(frozen=True)
class MeanField:
    r"""A factorised approximation :math:`q(x_1) \cdots q(x_L)` of the posterior of hidden layers.

    :param means: means of the hidden layers from the lowest to the top, shapes
        ``(..., size of layer l)``.
    :param thetas: their natural parameters, which say all about q.
    :param Tensor bound: :math:`E_q[-E(v, x)] + H(q) \le \log p^*(v)`, shape ``(...)``; differentiable in
        the machine's parameters, and in v, with q held.
    :param Tensor residual: by how much the last update changed a natural parameter of the layers
        :math:`x_1, x_3, \dots` at most; the layers between them are at their optimum for these.
    :param Tensor converged: whether that is at most the tolerance.
    :param Tensor num_updates: updates of all layers that a row took.
    """

    means: tuple[Tensor, ...]
    thetas: tuple[Tensor, ...]
    bound: Tensor
    residual: Tensor
    converged: Tensor
    num_updates: Tensor


def solve_mean_field(
    dbm: "DBM",
    v: Tensor,
    start: Sequence[Tensor] | None,
    max_updates: int,
    tolerance: float,
    *,
    damping: float = 0.0,
    accelerate: bool = True,
) -> MeanField:
    """See :meth:`pyro_ebm.distributions.DBM.mean_field`, which also warns."""
    check_options(max_updates, tolerance, damping=damping)
    _check(dbm, v)
    # Not -1: there may be no rows at all.
    rows = v.to(dbm.weights[0]).reshape(math.prod(v.shape[:-1]), v.shape[-1])
    batch = v.shape[:-1]
    if dbm.depth == 1:
        return _exact(dbm, rows, batch)
    posterior = _free_of_checks(dbm).posterior(rows)
    solver = MeanFieldSolver(posterior.bipartite())
    # What the rows exert is in the lowest layer's parameters already.
    field = posterior.units[0].natural_bias - dbm.units[1].natural_bias
    means = _first_means(dbm, field, start)
    with torch.no_grad():
        # The posterior's visible side is that of the odd layers of the machine.
        theta = solver.start(torch.cat(means[1::2], -1))
    found = solver.solve(
        theta,
        max_updates=max_updates,
        tolerance=tolerance,
        damping=damping,
        accelerate=accelerate,
    )
    bound = found.bound
    if torch.is_grad_enabled():
        # Once more with gradients of the parameters: q is held, where the bound is stationary in it.
        bound, _ = solver.evaluate(found.visible_theta)
    odd = found.visible_theta.split(dbm.sizes[1::2], -1)
    even = found.hidden_theta.split(dbm.sizes[2::2], -1)
    thetas = tuple(alternate(odd, even))
    with torch.no_grad():
        means = [unit.natural_mean(t) for unit, t in zip(dbm.units[1:], thetas, strict=True)]

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(batch + x.shape[1:])

    return MeanField(
        tuple(shaped(mean) for mean in means),
        tuple(shaped(theta) for theta in thetas),
        *(shaped(x) for x in (bound, found.residual, found.converged, found.num_updates)),
    )


def check_options(
    max_updates: int, tolerance: float, prefix: str = "", *, damping: float = 0.0
) -> None:
    """Refuse impossible options.

    :param str prefix: what stands before the names of the arguments in messages.
    """
    max_name, tolerance_name = "max_updates", "tolerance"
    if prefix:
        max_name, tolerance_name = f"max_{prefix}updates", f"{prefix}tolerance"
    if isinstance(max_updates, bool) or not isinstance(max_updates, int) or max_updates < 1:
        raise ValueError(f"{max_name} must be a whole number >= 1, got {max_updates!r}")
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ValueError(f"{tolerance_name} must be a number >= 0, got {tolerance!r}")
    if not isinstance(damping, int | float) or not 0 <= damping < 1:
        raise ValueError(f"damping must be a number in [0, 1), got {damping!r}")


def _check(dbm: "DBM", v: Tensor) -> None:
    if dbm.parameter_batch_shape:
        raise ValueError(
            "mean field takes a machine whose parameters have no batch shape, got "
            f"{tuple(dbm.parameter_batch_shape)}"
        )
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor, got {type(v).__name__}")
    if v.shape[-1:] != dbm.event_shape:
        raise ValueError(f"v must have shape (..., {dbm.event_shape[0]}), got {tuple(v.shape)}")
    if dbm._validate_args:
        _check_finite("v", v)


def _check_finite(name: str, x: Tensor) -> None:
    finite = torch.isfinite(x).all(-1)
    if not bool(finite.all()):
        number = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {number} of {finite.numel()} rows"
        )


def _free_of_checks(dbm: "DBM") -> "DBM":
    """The machine for inputs that may be means: grey levels are no states of bits."""
    if not dbm._validate_args:
        return dbm
    return dbm._like(dbm.units, dbm.weights, dbm._offsets, dbm._constant, validate_args=False)


def _exact(dbm: "DBM", rows: Tensor, batch: torch.Size) -> MeanField:
    """One hidden layer: q is the posterior."""
    machine = dbm.bipartite()
    with torch.no_grad():
        theta = dbm.units[1].theta(machine.hidden_field(rows)).reshape(*batch, dbm.sizes[1])
        mean = dbm.units[1].natural_mean(theta)
    zeros = torch.zeros_like(theta[..., 0])
    return MeanField(
        (mean,),
        (theta,),
        -machine.free_energy(rows).reshape(batch),
        zeros,
        torch.ones_like(zeros, dtype=torch.bool),
        torch.ones_like(zeros, dtype=torch.long),
    )


@torch.no_grad()
def _first_means(dbm: "DBM", field: Tensor, start: Sequence[Tensor] | None) -> list[Tensor]:
    """Means of the hidden layers to start from.

    :param Tensor field: that of the visible layer on the lowest hidden one, shape ``(rows, H_1)``.
    """
    if start is not None:
        if len(start) != dbm.depth:
            raise ValueError(f"start must be means of {dbm.depth} layers, got {len(start)}")
        given = []
        for number, (mean, size) in enumerate(zip(start, dbm.sizes[1:], strict=True)):
            if mean.shape[-1:] != (size,) or mean.shape[:-1].numel() != len(field):
                raise ValueError(
                    f"start[{number}] must have shape (..., {size}) for {len(field)} rows, got "
                    f"{tuple(mean.shape)}"
                )
            if dbm._validate_args:
                _check_finite(f"start[{number}]", mean)
            given.append(mean.to(field).reshape(len(field), size))
        return given
    means: list[Tensor] = []
    for layer in range(1, dbm.depth + 1):
        if means:
            below = means[-1]
            if dbm._offsets is not None:
                below = below - dbm._offsets[layer - 1]
            field = below @ dbm.weights[layer - 1]
        # What comes from below stands for what is to come from above too.
        means.append(dbm.units[layer].mean(field if layer == dbm.depth else 2.0 * field))
    return means
