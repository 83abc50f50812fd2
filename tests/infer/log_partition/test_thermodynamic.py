# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Thermodynamic integration: the integrand, its monotony, the bracket and the quadrature."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.log_partition.thermodynamic import thermodynamic_integration
from pyro_ebm.infer.paths import GeometricPath, base_unit
from tests.distributions.families import ALL_PAIRS, UNBOUNDED, random_rbm
from tests.infer.log_partition.machines50 import Case, machines

FINITE = [pair for pair in ALL_PAIRS if not set(pair) <= set(UNBOUNDED)]
FINITE_IDS = ["-".join(pair) for pair in FINITE]


def geometric(rbm: RBM) -> GeometricPath:
    base = "uniform" if rbm.visible.num_states else None
    return GeometricPath(rbm, base_unit(rbm, base))


def log_z(path: GeometricPath, beta: float) -> float:
    return exact_log_partition(path.machine(beta)).item()


def slope(path: GeometricPath, beta: float, step: float = 1e-4) -> float:
    """Derivative of the exact log Z, by differences of second order."""
    if beta < step:
        return (-3 * log_z(path, 0.0) + 4 * log_z(path, step) - log_z(path, 2 * step)) / (2 * step)
    if beta > 1.0 - step:
        one = log_z(path, 1.0)
        return (3 * one - 4 * log_z(path, 1.0 - step) + log_z(path, 1.0 - 2 * step)) / (2 * step)
    return (log_z(path, beta + step) - log_z(path, beta - step)) / (2 * step)


def exact_slopes(path: GeometricPath, betas: list[float]) -> Tensor:
    return torch.tensor([slope(path, beta) for beta in betas], dtype=torch.float64)


def even(num_levels: int) -> list[float]:
    return torch.linspace(0.0, 1.0, num_levels, dtype=torch.float64).tolist()


@pytest.mark.parametrize("pair", FINITE, ids=FINITE_IDS)
def test_slope_is_the_derivative_of_log_z(pair: tuple[str, str]) -> None:
    """The mean slope of the visible path is d log Z / d beta: by enumeration of the visible states, or
    by draws, where they cannot be enumerated."""
    path = geometric(random_rbm(pair, offsets=True))
    for beta in (0.0, 0.4, 1.0):
        machine, ladder = (
            path.machine(beta),
            path.ladder([0.0, 1.0] if beta in (0.0, 1.0) else [0.0, beta]),
        )
        level = 0 if beta == 0.0 else 1
        if machine.has_enumerate_support:
            v = machine.enumerate_support()
            weights = torch.softmax(machine.log_prob(v), 0)
        else:
            v = machine.sample(torch.Size((20_000,)))
            weights = torch.full((len(v),), 1.0 / len(v), dtype=torch.float64)
        states = v.unsqueeze(1).expand(-1, 2, -1)
        slopes = ladder.slope(states, ladder.fields(states))[:, level]
        mean = (weights * slopes).sum().item()
        limit = 1e-5
        if not machine.has_enumerate_support:
            limit = 6.0 * slopes.std().item() / math.sqrt(len(v))
        assert abs(mean - slope(path, beta)) < limit


@pytest.mark.parametrize("pair", FINITE, ids=FINITE_IDS)
def test_integrand_increases(pair: tuple[str, str]) -> None:
    """log Z is convex in beta, as the joint log-density is linear in it."""
    path = geometric(random_rbm(pair, offsets=True, scale=2.0 if "relu" not in pair else 1.0))
    values = torch.tensor([log_z(path, beta) for beta in even(9)]).double()
    assert (values.diff().diff() > -1e-9).all()


@pytest.mark.parametrize("case", machines()[::3], ids=lambda case: case.name)
def test_bracket_holds_at_any_number_of_levels(case: Case) -> None:
    path = GeometricPath(case.rbm, base_unit(case.rbm, None))
    truth = case.log_z - path.log_partition_base.item()
    widths = []
    for num_levels in (2, 3, 6, 12):
        betas = even(num_levels)
        integral = thermodynamic_integration(betas, exact_slopes(path, betas).expand(2, -1))
        low, high = integral.low.item(), integral.high.item()
        assert low - 1e-4 <= truth <= high + 1e-4
        assert low - 1e-4 <= integral.value.item() <= high + 1e-4
        widths.append(high - low)
    # The width falls like one over the number of levels, exactly so on an even ladder.
    torch.testing.assert_close(
        torch.tensor(widths) * torch.tensor([1, 2, 5, 11]), torch.full((4,), widths[0])
    )
    assert widths[0] > 1e-3


def test_quadrature_converges() -> None:
    """Exact for parabolas on any ladder; of third order at least for smooth integrands."""
    uneven = [0.0, 0.1, 0.15, 0.4, 0.8, 1.0]
    x = torch.tensor(uneven, dtype=torch.float64)
    parabola = 1.0 + 2.0 * x + 0.3 * x.square()
    integral = thermodynamic_integration(uneven, parabola.expand(3, -1))
    assert integral.value.item() == pytest.approx(1.0 + 1.0 + 0.1, abs=1e-12)
    errors = []
    for num_levels in (9, 17, 33):
        x = torch.tensor(even(num_levels), dtype=torch.float64)
        value = thermodynamic_integration(even(num_levels), (3.0 * x).exp().expand(2, -1)).value
        errors.append(abs(value.item() - math.expm1(3.0) / 3.0))
    assert errors[0] / errors[1] > 8.0 and errors[1] / errors[2] > 8.0
    assert errors[2] < 2e-5


def test_interpolant_stays_inside_the_bracket() -> None:
    """Between levels around a jump a cubic without limits would overshoot."""
    betas = [0.0, 0.45, 0.5, 0.6, 1.0]
    y = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).double()
    integral = thermodynamic_integration(betas, y.expand(2, -1))
    assert integral.low < integral.value < integral.high
    assert integral.value.item() == pytest.approx(0.5 + 0.05 / 2.0, abs=1e-12)


def test_discretisation_error_is_cautious() -> None:
    """Never too small on machines of all couplings, and not hopelessly large."""
    ratios = []
    for case in machines()[::4]:
        path = GeometricPath(case.rbm, base_unit(case.rbm, None))
        truth = case.log_z - path.log_partition_base.item()
        # Levels at equal steps of the standard deviation, about what tuning gives.
        dense = exact_slopes(path, even(41))
        position = (dense.diff() * 40).clamp(min=0.0).sqrt().cumsum(0)
        position = torch.cat([torch.zeros(1).double(), position / position[-1]])
        wanted = torch.linspace(0.0, 1.0, 16).double()
        right = torch.searchsorted(position, wanted).clamp(1, 40)
        share = (wanted - position[right - 1]) / (position[right] - position[right - 1])
        betas = ((right - 1 + share) / 40).clamp(0.0, 1.0).tolist()
        betas[0], betas[-1] = 0.0, 1.0
        integral = thermodynamic_integration(betas, exact_slopes(path, betas).expand(2, -1))
        error = (integral.value - truth).abs().item()
        assert error < integral.discretisation.item() + 1e-5, case.name
        ratios.append(error / (integral.discretisation.item() + 1e-6))
    assert max(ratios) > 0.05


def test_noise() -> None:
    """Jackknife over chains: the spread of the estimate, of the low and of the high end."""
    num_runs, num_chains = 2000, 20
    betas = [0.0, 0.1, 0.3, 0.7, 1.0]
    x = torch.tensor(betas).double()
    noise = torch.randn(num_chains, 5, num_runs, dtype=torch.float64)
    # Noise of chains that is common to all levels counts in full.
    common = torch.randn(num_chains, 1, num_runs, dtype=torch.float64)
    slopes = (20.0 * x + 5.0 * x.square()).view(1, 5, 1) + noise + common
    integral = thermodynamic_integration(betas, slopes)
    for value, error, expected in (
        (integral.value, integral.std_error, 10.0 + 5.0 / 3.0),
        (integral.low, integral.low_error, None),
        (integral.high, integral.high_error, None),
    ):
        assert value.shape == (num_runs,)
        assert error.square().mean() == pytest.approx(value.var().item(), rel=0.2)
        if expected is not None:
            assert abs((value.mean() - expected) / (value.std() / num_runs**0.5)) < 6.0
    assert integral.replicates.shape == (num_chains, num_runs)
    assert thermodynamic_integration(betas, slopes[:1]).std_error.isinf().all()


def test_batch_shape() -> None:
    slopes = torch.randn(4, 3, 2, 5).double().cumsum(1)
    whole = thermodynamic_integration(even(3), slopes)
    part = thermodynamic_integration(even(3), slopes[..., 1, 2])
    for name in ("value", "std_error", "discretisation", "low", "high", "low_error", "high_error"):
        assert getattr(whole, name).shape == (2, 5)
        torch.testing.assert_close(getattr(whole, name)[1, 2], getattr(part, name))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (0, 5)])
def test_refusals(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="slopes must have shape"):
        thermodynamic_integration(even(5), torch.zeros(shape))


class TestMistakesAreCaught:
    """Comparisons with the exact log Z reject what they are there to reject."""

    @staticmethod
    def integral(betas: list[float], broken: list[float]) -> tuple[float, float, float]:
        case = machines()[2]
        path = GeometricPath(case.rbm, base_unit(case.rbm, None))
        slopes = exact_slopes(path, betas)
        truth = case.log_z - path.log_partition_base.item()
        integral = thermodynamic_integration(broken, slopes[: len(broken)].expand(2, -1))
        return integral.low.item(), integral.high.item(), truth

    def test_nothing_wrong(self) -> None:
        low, high, truth = self.integral(even(12), even(12))
        assert low < truth < high

    def test_last_level_dropped(self) -> None:
        low, high, truth = self.integral(even(12), even(12)[:-1])
        assert not low < truth < high

    def test_ladder_reversed(self) -> None:
        case = machines()[2]
        path = GeometricPath(case.rbm, base_unit(case.rbm, None))
        integral = thermodynamic_integration(
            even(12), exact_slopes(path, even(12)).flip(0).expand(2, -1)
        )
        assert integral.low > integral.high
