# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Simulation-based calibration: does a sampler draw from the posterior of a model?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pyro_ebm.diagnostics.posterior_runs import PosteriorRuns, Sampler, low_effective_size
from pyro_ebm.diagnostics.rank_tests import Ranks, RankTest, holm, rank_test
from pyro_ebm.diagnostics.simulated_data import Simulator

__all__ = ["CalibrationResult", "simulation_based_calibration"]

#: Ranks that a bin of the histogram should hold, at least.
_MIN_EXPECTED = 8
#: Share of ``num_draws`` that effective sizes, which are estimates, must have not to be called too few.
_ENOUGH = 0.8


@dataclass(frozen=True)
class CalibrationResult:
    """Ranks of true values among posterior draws, and whether they are uniform.

    :param ranks: by quantity, shape ``(simulations,)``, from 0 to ``num_draws``.
    :param int num_draws: posterior draws that every rank is among.
    :param int num_bins: bins of the histograms that were tested.
    :param float level: probability that a correct sampler fails, all tests together.
    :param tests: by quantity.
    :param float thin: transitions a draw, mean over the simulations.
    :param effective_sizes: effective size of the chain of every simulation, the smallest over the quantities;
        None if not known.
    """

    ranks: dict[str, Ranks]
    num_draws: int
    num_bins: int
    level: float
    tests: dict[str, RankTest]
    thin: float
    effective_sizes: Sequence[float] | None = None

    @property
    def has_enough_draws(self) -> bool:
        """Whether chains have an effective size of about ``num_draws`` in all but a tenth of the simulations.

        If not, ranks are those of dependent draws, which are not uniform even if the sampler is right.
        """
        sizes = self.effective_sizes
        return sizes is None or low_effective_size(sizes) >= _ENOUGH * self.num_draws

    @property
    def num_simulations(self) -> int:
        """Data sets that were simulated."""
        return len(next(iter(self.ranks.values())))

    @property
    def adjusted_p_values(self) -> dict[str, tuple[float, float]]:
        """P-values of the histogram and of the empirical CDF by quantity, adjusted for the number of all
        tests (Holm)."""
        adjusted = holm([p for t in self.tests.values() for p in (t.chi_square_p, t.ecdf_p)])
        return {name: (adjusted[2 * i], adjusted[2 * i + 1]) for i, name in enumerate(self.tests)}

    @property
    def p_value(self) -> float:
        """The smallest adjusted p-value."""
        return min(min(pair) for pair in self.adjusted_p_values.values())

    @property
    def passed(self) -> bool:
        """Whether no test rejects at the level."""
        return self.p_value > self.level

    def to_dict(self) -> dict[str, Any]:
        """Everything, with JSON types only."""
        return {
            "passed": self.passed,
            "p_value": self.p_value,
            "level": self.level,
            "num_simulations": self.num_simulations,
            "num_draws": self.num_draws,
            "num_bins": self.num_bins,
            "thin": self.thin,
            "smallest_effective_size": None
            if self.effective_sizes is None
            else min(self.effective_sizes),
            "has_enough_draws": self.has_enough_draws,
            "quantities": {
                name: {
                    "ranks": self.ranks[name].tolist(),
                    "chi_square": test.chi_square,
                    "chi_square_p": test.chi_square_p,
                    "ecdf_p": test.ecdf_p,
                }
                for name, test in self.tests.items()
            },
        }

    def __str__(self) -> str:
        width = max(len("quantity"), *map(len, self.tests))
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"simulation-based calibration {verdict}: smallest adjusted p-value {self.p_value:.2g}, level "
            f"{self.level:g}; {self.num_simulations} simulations, {self.num_draws} draws each, "
            f"{self.thin:.3g} transitions a draw",
            *self._words_on_sizes(),
            f"{'quantity':<{width}}  chi-square p    ECDF p   adjusted",
        ]
        for name, adjusted in self.adjusted_p_values.items():
            test = self.tests[name]
            lines.append(
                f"{name:<{width}}  {test.chi_square_p:12.3g}  {test.ecdf_p:8.3g}  {min(adjusted):9.3g}"
            )
        return "\n".join(lines)

    def _words_on_sizes(self) -> list[str]:
        if self.effective_sizes is None:
            return []
        words = (
            f"effective draws: {min(self.effective_sizes):.3g} in the worst simulation, "
            f"{low_effective_size(self.effective_sizes):.3g} in all but a tenth"
        )
        if not self.has_enough_draws:
            words += f", FEWER than the {self.num_draws} that are ranked: raise thin or max_thin"
        return [words]


def simulation_based_calibration(
    model: Callable[..., Any],
    kernel: Callable[[Callable[..., Any]], Any] | None = None,
    *,
    sampler: Sampler | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    observed: Sequence[str] | None = None,
    quantities: Mapping[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]]
    | None = None,
    num_simulations: int = 200,
    num_draws: int = 63,
    warmup_steps: int = 200,
    thin: int | None = None,
    max_thin: int = 50,
    num_bins: int | None = None,
    level: float = 0.01,
    vectorized: bool = False,
) -> CalibrationResult:
    r"""Test a sampler on data sets that were simulated from the model itself.

    Parameters are drawn from the prior, data given them, and the sampler runs on the data. If its draws are
    those of the posterior, the true parameter is one draw among them, and its rank is uniform on
    ``0, ..., num_draws`` [1]: whatever the model, and without knowing any posterior. A hump in the histogram
    of ranks means a posterior that is too wide, a trough one too narrow, a slope a biased one.

    Every quantity has two tests: chi-square of the histogram, and the largest deviation of the empirical
    CDF from its simultaneous band [2], with an exact p-value. All p-values are adjusted together (Holm):
    a correct sampler fails with a probability of about ``level``.

    Ranks are uniform for independent draws; those of a chain are thinned. With ``thin=None`` a chain is run
    again, longer, until its effective size (the smallest over the quantities) is ``num_draws`` or
    ``max_thin`` is reached; a fresh run of this length is ranked. If draws are still dependent, as with a
    ``thin`` that is too small, the printed result says so (``has_enough_draws``). Equal values, as those of
    bits, are ranked at random among each other.

    Draws come from the global generator: seed it with ``pyro.set_rng_seed``.

    **References**

    [1] *Validating Bayesian Inference Algorithms with Simulation-Based Calibration*, Sean Talts,
    Michael Betancourt, Daniel Simpson, Aki Vehtari, Andrew Gelman (2018)

    [2] *Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison*, Teemu Säilynoja, Paul-Christian Bürkner, Aki Vehtari (2022)

    :param model: a Pyro model that can be simulated: no factors, no improper priors, no scaled sites, no
        machines without a layer that can be enumerated (whose draws would be approximate).
    :param kernel: makes an MCMC kernel of a model conditioned on data, such as the class
        :class:`pyro.infer.NUTS` or ``lambda model: Exchange(model, num_bridges=5)``.
    :param sampler: in the place of a kernel, a function of the data by site and a number of draws that
        returns independent draws by site, shape ``(draws, *site)``.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param observed: names of the sites of the data; those that the model observes if None (their
        present values do not matter).
    :param quantities: functions of draws by site (one leading axis) and of the data by site, which
        return one number a draw, by name; every entry of every latent site if None.
    :param int num_simulations: data sets.
    :param int num_draws: posterior draws that every true value is ranked among.
    :param int warmup_steps: transitions of every chain that are thrown away.
    :param thin: transitions a draw; chosen by the effective sample size if None.
    :param int max_thin: the largest choice.
    :param num_bins: bins of the histogram, a divisor of ``num_draws + 1``; as many as leave 8 ranks a bin and
        at most 16 if None.
    :param float level: probability that a correct sampler fails.
    :param bool vectorized: whether to run all simulations as the chains of one
        :class:`~pyro_ebm.infer.VectorizedMCMC`, which :class:`~pyro_ebm.infer.Exchange` and
        :class:`~pyro_ebm.infer.PseudoMarginal` can. The model then gets a plate on its left, and data of
        the shape ``(simulations, ...)``.
    :raises ValueError: for impossible numbers or names, or a model that cannot be simulated.
    :raises TypeError: if not exactly one of ``kernel`` and ``sampler`` is given, or the kernel cannot be
        vectorised.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))
    >>> def exact(data, num_draws):
    ...     return {"x": 0.5 * data["y"] + 0.5**0.5 * torch.randn(num_draws)}
    >>> simulation_based_calibration(model, sampler=exact, num_simulations=100, num_draws=15).passed
    True
    """
    if (kernel is None) == (sampler is None):
        raise TypeError("give exactly one of kernel and sampler")
    bins = _num_bins(num_bins, num_simulations, num_draws)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if warmup_steps < 0 or max_thin < 1 or (thin is not None and thin < 1):
        raise ValueError(
            "warmup_steps must be at least 0, thin and max_thin at least 1, got "
            f"{warmup_steps}, {thin} and {max_thin}"
        )
    simulator = Simulator(model, tuple(args), dict(kwargs or {}), observed)
    runs = PosteriorRuns(
        simulator,
        kernel,
        sampler,
        quantities,
        num_draws=num_draws,
        warmup_steps=warmup_steps,
        thin=thin,
        max_thin=max_thin,
    )
    ranks = runs.together(num_simulations) if vectorized else runs.one_by_one(num_simulations)
    tests = {name: rank_test(own, num_draws, bins) for name, own in ranks.items()}
    return CalibrationResult(
        ranks, num_draws, bins, level, tests, float(np.mean(runs.thins)), runs.effective_sizes
    )


def _num_bins(num_bins: int | None, num_simulations: int, num_draws: int) -> int:
    if num_simulations < 2 * _MIN_EXPECTED or num_draws < 3:
        raise ValueError(
            f"num_simulations must be at least {2 * _MIN_EXPECTED} and num_draws at least 3, got "
            f"{num_simulations} and {num_draws}"
        )
    divisors = [d for d in range(2, num_draws + 2) if (num_draws + 1) % d == 0]
    if num_bins is None:
        fitting = [d for d in divisors if d <= 16 and num_simulations / d >= _MIN_EXPECTED]
        if not fitting:
            raise ValueError(
                f"num_draws + 1 = {num_draws + 1} has no divisor that leaves {_MIN_EXPECTED} of "
                f"{num_simulations} ranks a bin and at most 16 bins; take 15, 31 or 63 draws"
            )
        return max(fitting)
    if num_bins not in divisors:
        raise ValueError(f"num_bins must divide num_draws + 1 = {num_draws + 1}, got {num_bins}")
    return num_bins
