# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The field that the rest of a Pyro model exerts on the visible layer of a machine."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.mcmc.site_density import SiteDensity

__all__ = [
    "NUM_CHECKS",
    "DifferenceField",
    "Field",
    "FixedDifferenceField",
    "GradientField",
    "LocalField",
    "choose_field",
    "choose_linear",
    "exact_gradients",
    "measure_field",
    "nonlinearity",
    "random_states",
    "refuse_nonlinear",
    "with_curvature",
]

#: Model runs that measuring the fields may take.
_MAX_RUNS = 100_000
#: Entries of the states of one run of the model with many of them.
_MAX_ENTRIES = 2**22
#: Random states at which linearity is checked. One that a single pair of bits violates is missed with
#: probability (3/4)^40 = 1e-5.
NUM_CHECKS = 40
#: Random states at which a gradient is compared with differences.
_NUM_COMPARED = 3
#: Units for which it is, at most; random states test all of them together.
_MAX_COMPARED = 64


@dataclass(frozen=True)
class LocalField:
    r"""What the rest of a model is near a state v, up to second order of single units:

    .. math:: \ell(v') \approx \mathrm{const} + t^\top v' - \tfrac12 \sum_i d_i v_i'^2

    :param Tensor log_density: :math:`\ell(v)`, float64, shape ``chain_shape + rows``.
    :param Tensor field: t, shape ``chain_shape + rows + (V,)``.
    :param curvature: d of the same shape; None for zero.
    """

    log_density: Tensor
    field: Tensor
    curvature: Tensor | None = None

    def linear(self, v: Tensor) -> Tensor:
        """The approximation at states, without its constant, float64."""
        v = v.double()
        value = (self.field.double() * v).sum(-1)
        if self.curvature is not None:
            value = value - 0.5 * (self.curvature.double() * v.square()).sum(-1)
        return value

    def replace_where(self, accept: Tensor, other: "LocalField") -> "LocalField":
        """The rows of another one where accepted, the own ones elsewhere."""
        rows = accept.unsqueeze(-1)
        curvature = self.curvature
        if curvature is not None and other.curvature is not None:
            curvature = torch.where(rows, other.curvature, curvature)
        return LocalField(
            torch.where(accept, other.log_density, self.log_density),
            torch.where(rows, other.field, self.field),
            curvature,
        )


class Field(Protocol):
    """A way to find the field; a function of the state and of the other sites' values alone."""

    #: How many times more a sum over the field is in error than by the rounding of one run.
    slack: float

    def __call__(self, v: Tensor) -> LocalField:
        """The field at states of shape ``chain_shape + rows + (V,)``."""
        ...

    def refresh(self) -> None:
        """Forget what was measured at other values of the rest of the model."""


class GradientField:
    r"""The field from derivatives by autograd: one run of the model.

    To first order the field is the gradient g. With the second derivatives -d of the rest by single
    units, :math:`t = g + d v` with curvature d, which discrete units turn into a field: their squares
    are linear functions of their states (except counts, for which this is the nearest one).

    :param SiteDensity density: the rest of the model.
    :param Unit unit: the visible layer; of the further layers that a deep machine's states hold beside it the
        rest knows nothing, and the field is zero there.
    :param bool second_order: whether to take second derivatives.
    """

    def __init__(self, density: SiteDensity, unit: Unit, second_order: bool) -> None:
        self._density = density
        self._unit = unit
        self.slack = 1.0
        self._second_order = second_order
        if unit.is_discrete and second_order:
            states = unit.unit_states()
            self._squares = (_least_squares(states) @ states.double().square()).to(states.dtype)

    def refresh(self) -> None:
        """Nothing is kept."""

    def __call__(self, v: Tensor) -> LocalField:
        # Any function of the state would do; an infinite gradient is no use to anybody.
        if not self._second_order:
            value, gradient = self._density.value_and_gradient(v)
            return LocalField(value, _finite(gradient))
        value, gradient, second = self._density.second_order(v)
        curvature, gradient = -_finite(second), _finite(gradient)
        if self._unit.is_discrete:
            groups = self._seen(curvature).unflatten(-1, (-1, self._squares.shape[1]))
            squares = _as_wide((groups @ self._squares.mT).flatten(-2), v)
            return LocalField(value, gradient + curvature * v - 0.5 * squares)
        # Proposals need a positive precision also where the rest is convex: that of the machine as the
        # latest run of the model had it, which may depend on other sites.
        machine = self._density.fn
        assert isinstance(machine, RBM)
        least = -0.9 * machine.visible.parameters[_precision_name(machine.visible)].detach()
        least = self._seen(least) if least.dim() else least
        curvature = _as_wide(torch.maximum(self._seen(curvature), least), v)
        return LocalField(value, gradient + curvature * v, curvature)

    def _seen(self, x: Tensor) -> Tensor:
        """The entries of the visible layer."""
        return x[..., : self._unit.size]


class DifferenceField:
    """Differences between the states of every unit, the others as they are: one run of the model
    with all states as chains if the model can be run with chains.

    :param SiteDensity density: the rest of the model.
    :param Unit unit: the visible layer, discrete.
    """

    def __init__(self, density: SiteDensity, unit: Unit) -> None:
        # Every difference has the error of the total.
        self.slack = math.sqrt(unit.num_units)
        self._density = density
        self._unit = unit

    def refresh(self) -> None:
        """Nothing is kept."""

    def __call__(self, v: Tensor) -> LocalField:
        return LocalField(self._density.log_density(v), measure_field(self._density, self._unit, v))


class FixedDifferenceField:
    """Differences at one state for all others: exact where the rest is linear.

    :param SiteDensity density: the rest of the model.
    :param Unit unit: the visible layer, discrete.
    :param Tensor reference: the state, shape ``rows + (V,)``.
    """

    def __init__(self, density: SiteDensity, unit: Unit, reference: Tensor) -> None:
        self.slack = math.sqrt(unit.num_units)
        self._density = density
        self._unit = unit
        self._reference = reference
        self._field: Tensor | None = None

    def refresh(self) -> None:
        self._field = None

    def __call__(self, v: Tensor) -> LocalField:
        if self._field is None:
            self._field = measure_field(self._density, self._unit, self._reference)
        return LocalField(self._density.log_density(v), self._field.expand(v.shape))


def random_states(rbm: RBM, sample_shape: tuple[int, ...] = ()) -> Tensor:
    """States of the visible layer (all even layers of a deep machine) drawn without any field."""
    theta = rbm.visible.neutral().natural_bias.detach()
    return rbm.visible.natural_sample(
        theta.expand(sample_shape + rbm.batch_shape + rbm.event_shape)
    )


def measure_field(
    density: SiteDensity, unit: Unit, start: Tensor, units: Sequence[int] | None = None
) -> Tensor:
    """Least-squares field of every unit from the log-densities of all of its states.

    :param SiteDensity density: the rest of the model.
    :param Unit unit: the visible layer, discrete.
    :param Tensor start: states of the other units meanwhile, shape ``chain_shape + rows + (V,)``, or more
        entries, on which the rest does not depend.
    :param units: numbers of the units to measure, one after the other in the result; all if None, and the
        result is then as wide as ``start``.
    :raises ValueError: if that takes more than 100,000 states.
    """
    states = unit.unit_states()
    num_states, every = len(states), units is None
    if unit.num_units * num_states > _MAX_RUNS:
        raise ValueError(
            f"{unit.num_units} units of {num_states} states each need more than {_MAX_RUNS} runs "
            "of the model"
        )
    units = units if units is not None else range(unit.num_units)
    values = torch.cat([density.log_density(v) for v in _changed_states(units, states, start)])
    values = values.unflatten(0, (len(units), num_states))
    field = torch.einsum("dk,nk...->...nd", _least_squares(states), values)
    field = field.flatten(-2).to(start.dtype)
    return _as_wide(field, start) if every else field


def _as_wide(x: Tensor, v: Tensor) -> Tensor:
    """Numbers of the visible units with zeros for the further entries of states."""
    missing = v.shape[-1] - x.shape[-1]
    return pad(x, (0, missing)) if missing else x


def _changed_states(units: Sequence[int], states: Tensor, start: Tensor) -> Iterator[Tensor]:
    """The start with one unit after the other in each of its states, in chunks."""
    num_states, width = states.shape
    chunk = max(1, _MAX_ENTRIES // (num_states * start.numel()))
    lifted = states.reshape((num_states,) + (1,) * (start.dim() - 1) + (width,))
    for first in range(0, len(units), chunk):
        numbers = units[first : first + chunk]
        changed = start.repeat((len(numbers), num_states) + (1,) * start.dim())
        for position, i in enumerate(numbers):
            changed[position, ..., i * width : (i + 1) * width] = lifted
        yield changed.flatten(0, 1)


def _least_squares(states: Tensor) -> Tensor:
    """The matrix from the values at all states of a unit to its field, whatever constant the values have.

    The minimum-norm solution: one-hot states leave a constant of the field free.
    """
    states = states.double()
    inverse = torch.linalg.pinv(states - states.mean(0))
    return inverse - inverse.mean(1, keepdim=True)


def nonlinearity(
    density: SiteDensity, local: LocalField, reference: Tensor, states: Tensor, slack: float
) -> float:
    """Compare the rest with a linear function at some states.

    :param SiteDensity density: the rest of the model.
    :param LocalField local: the rest at the reference.
    :param Tensor reference: where the field was found, shape ``rows + (V,)``.
    :param Tensor states: where to compare, shape ``chain_shape + rows + (V,)``.
    :param float slack: how many times more the field is in error than by the rounding of one run.
    :returns: the largest difference, zero if it may be rounding.
    """
    values = density.log_density(states)
    expected = local.log_density + local.linear(states) - local.linear(reference)
    error = (values - expected).abs()
    fine = bool((error <= slack * _rounding(local, values, states.dtype)).all())
    return 0.0 if fine else error.max().item()


def _rounding(local: LocalField, values: Tensor, dtype: torch.dtype) -> Tensor:
    """A bound on the rounding errors of log-densities whose terms were computed in a type.

    Terms may cancel. Their size is told by the total, the fields, and some ten for every unit.
    """
    coarse = torch.finfo(dtype).eps > 1e-10
    size = values.abs() + local.field.double().abs().sum(-1) + 10.0 * local.field.shape[-1]
    return (2e-6 if coarse else 1e-11) * size + (1e-3 if coarse else 1e-8)


def refuse_nonlinear(site: str, error: float) -> None:
    """Say what to use where block Gibbs would not be exact."""
    raise ValueError(
        f"the rest of the model is not linear in the states of site {site!r} (off by {error:.3g} at "
        "some state), so that block Gibbs would not be exact; use MetropolisBlockGibbs or "
        "GibbsWithGradients"
    )


def _precision_name(unit: Unit) -> str:
    """Name of the precisions of a layer, or of its first block."""
    return "precision" if "precision" in unit.parameters else "0_precision"


def with_curvature(unit: Unit, curvature: Tensor) -> Unit:
    """A layer of real units, or one whose first block is of them, with curvatures in its precisions.

    :param Unit unit: the layer.
    :param Tensor curvature: shape ``(..., size)``, zero at all other blocks.
    """
    name, (_, first) = _precision_name(unit), unit.parts()[0]
    return unit.replace(**{name: unit.parameters[name] + curvature[..., : first.size]})


def choose_field(density: SiteDensity) -> Field:
    """The cheapest way to find the field that is as good as measuring it.

    These are derivatives where they agree with the differences between states; otherwise the
    differences, at one state if the rest turns out to be linear; and the gradient as it is where the
    differences would take a run of the model each at every step. Real and mixed units take derivatives.

    :param SiteDensity density: the rest of the model, whose site is a machine.
    """
    unit, rbm = density.seen_units, density.fn
    assert isinstance(rbm, RBM)
    if not unit.is_discrete or len(unit.parts()) > 1:
        # Second derivatives go into the precisions of single units, which others do not have.
        has_precision = "precision" in unit.parameters and unit.num_units == unit.size
        return GradientField(density, unit, has_precision and _is_twice_differentiable(density))
    gradient = GradientField(density, unit, second_order=False)
    if unit.num_units * len(unit.unit_states()) > _MAX_RUNS:
        return gradient
    agreeing = exact_gradients(density, unit, random_states(rbm, (_NUM_COMPARED,)))
    reference = random_states(rbm)
    candidates: list[Field] = [*agreeing] or [FixedDifferenceField(density, unit, reference)]
    linear = choose_linear(density, candidates, reference, random_states(rbm, (NUM_CHECKS,)))
    if linear is not None:
        return linear
    if agreeing:
        return agreeing[0]
    return DifferenceField(density, unit) if density.runs_chains else gradient


def choose_linear(
    density: SiteDensity, candidates: Sequence[Field], reference: Tensor, states: Tensor
) -> Field | None:
    """The first field with which the rest is linear at some states, None if there is none."""
    for field in candidates:
        if nonlinearity(density, field(reference), reference, states, field.slack) == 0.0:
            return field
    return None


def exact_gradients(density: SiteDensity, unit: Unit, states: Tensor) -> list[GradientField]:
    """Derivatives that are the differences between states, the best first.

    The gradient is, where the rest is linear in every unit; second derivatives repair a square of
    single units, as in the logarithm of a normal density.

    :param SiteDensity density: the rest of the model.
    :param Unit unit: the visible layer, discrete.
    :param Tensor states: where to compare, shape ``chain_shape + rows + (V,)``.
    """
    some = torch.randperm(unit.num_units)[:_MAX_COMPARED].tolist()
    measured = measure_field(density, unit, states, some).double()
    table = unit.unit_states()
    # One-hot units leave a constant of the field free.
    project = _least_squares(table) @ table.double()
    found: list[tuple[Tensor, GradientField]] = []
    for second_order in (False, True) if _is_twice_differentiable(density) else (False,):
        gradient = GradientField(density, unit, second_order)
        local = gradient(states)
        field = local.field[..., : unit.size].double()
        field = field.unflatten(-1, (unit.num_units, table.shape[1]))
        error = ((field[..., some, :] @ project.mT).flatten(-2) - measured).abs()
        if bool((error.amax(-1) <= _rounding(local, local.log_density, states.dtype)).all()):
            found.append((local.field, gradient))
    # The gradient alone is cheaper. Second derivatives that are small now may grow with other sites.
    if len(found) == 2 and not torch.equal(found[0][0], found[1][0]):
        found.reverse()
    return [gradient for _, gradient in found]


def _is_twice_differentiable(density: SiteDensity) -> bool:
    try:
        density.second_order(density.value)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
