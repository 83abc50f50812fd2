# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""RAISE against the annealing model's own probabilities, from the matrices of its transitions."""

import itertools
import json
import math
from pathlib import Path as Path_
from typing import Any

import numpy as np
import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    LogLikelihoodEstimate,
    exact_log_partition,
    log_likelihood,
    raise_log_likelihood,
)
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path, base_unit
from tests.distributions.families import CONTINUOUS, DISCRETE, random_rbm
from tests.infer.reference import Z_LIMIT, z_score

#: Few temperatures, unevenly spread: the annealing model is far from the machine.
BETAS = torch.tensor([0.0, 0.3, 1.0])


def strong(pair: tuple[str, str] = ("bernoulli", "bernoulli"), scale: float = 3.0) -> RBM:
    """A machine of 8 visible states (27 or 10 for groups and counts) with strong weights."""
    return random_rbm(pair, offsets=True, scale=scale)


def bimodal(scale: float = 0.6) -> BernoulliRBM:
    """4 x 3 bits that are all on or all off, hard to anneal (KL 0.55 from the machine at BETAS)."""
    bias = torch.tensor([-3.9, -3.7, -3.5, -3.6], dtype=torch.float64)
    hidden_bias = torch.tensor([-5.0, -4.6, -5.2], dtype=torch.float64)
    weight = torch.full((4, 3), 2.5, dtype=torch.float64)
    return BernoulliRBM(scale * weight, scale * bias, scale * hidden_bias)


def states_of(rbm: RBM) -> Tensor:
    assert rbm.visible.num_states is not None
    return rbm.visible.states(0, rbm.visible.num_states)


def transition(machine: RBM) -> Tensor:
    """Element [i, j]: probability that a sweep leads from visible state i to j."""
    v, h = states_of(machine), states_of(machine.transpose())
    to_hidden = machine.hidden_given(v.unsqueeze(1)).log_prob(h).exp()
    to_visible = machine.visible_given(h.unsqueeze(1)).log_prob(v).exp()
    torch.testing.assert_close(to_hidden.sum(1), torch.ones(len(v), dtype=torch.float64))
    return to_hidden @ to_visible


def annealing_model(path: Path, betas: Tensor) -> Tensor:
    """Probability of every visible state at the end of a forward run."""
    start = path.machine(0.0).log_prob(states_of(path.target))
    p = torch.softmax(start, 0)
    for beta in betas[1:].tolist():
        p = p @ transition(path.machine(beta))
    return p


def run(dist: RBM, data: Tensor, **options: Any) -> LogLikelihoodEstimate:
    options = {"num_rows": None, "num_chains": 20_000, "schedule": BETAS, **options}
    return raise_log_likelihood(dist, data, **{"chunk_size": 100_000, "seed": 1, **options})


def rows_z(estimate: LogLikelihoodEstimate, p: Tensor, log_weights: Tensor) -> Tensor:
    """Standard errors between the mean weight of every row and its probability."""
    weights = log_weights.exp()
    assert torch.equal(estimate.rows, torch.arange(len(p)))
    return torch.tensor([z_score(w, q.item()) for w, q in zip(weights.unbind(1), p, strict=True)])


class Recorder:
    """Keeps the weights of single chains, which the estimate does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log_weights = torch.empty(0)
        original = LogLikelihoodEstimate.from_log_weights

        def record(log_weights: Tensor, *arguments: Any) -> LogLikelihoodEstimate:
            self.log_weights = log_weights
            return original(log_weights, *arguments)

        monkeypatch.setattr(LogLikelihoodEstimate, "from_log_weights", record)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


class TestUnbiased:
    @pytest.mark.parametrize(
        "pair", list(itertools.product(DISCRETE, DISCRETE)), ids=lambda p: "-".join(p)
    )
    def test_every_discrete_pair(self, pair: tuple[str, str], recorder: Recorder) -> None:
        rbm = strong(pair, 1.0)
        v = states_of(rbm)
        p = annealing_model(GeometricPath(rbm, rbm.visible), BETAS)
        estimate = run(rbm, v, num_chains=10_000)
        z = rows_z(estimate, p, recorder.log_weights)
        assert z.abs().max() < Z_LIMIT

    @pytest.mark.parametrize("base", ["none", "uniform", "means"])
    def test_every_base(self, base: str, recorder: Recorder) -> None:
        rbm = strong()
        chosen: Any = {"none": None, "uniform": "uniform", "means": torch.tensor([0.2, 0.5, 0.8])}
        path = GeometricPath(rbm, base_unit(rbm, chosen[base]))
        estimate = run(rbm, states_of(rbm), base=chosen[base])
        z = rows_z(estimate, annealing_model(path, BETAS), recorder.log_weights)
        assert z.abs().max() < Z_LIMIT

    def test_another_path(self, recorder: Recorder) -> None:
        rbm, other = strong(), strong(scale=1.0)
        path = MachinePath.from_checkpoints([other, rbm])
        estimate = run(rbm, states_of(rbm), path=path)
        z = rows_z(estimate, annealing_model(path, BETAS), recorder.log_weights)
        assert z.abs().max() < Z_LIMIT

    def test_float32_and_clamped_machines(self, recorder: Recorder) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, scale=2.0)
        clamped = rbm.clamp(torch.tensor([True, False, False]), torch.ones(3).double())
        p = annealing_model(GeometricPath(clamped, clamped.visible), BETAS)
        estimate = run(clamped.to(torch.float32), states_of(clamped), num_chains=50_000)
        assert rows_z(estimate, p, recorder.log_weights).abs().max() < Z_LIMIT
        assert estimate.value.dtype == torch.float64

    @pytest.mark.parametrize("pair", [("gaussian", "bernoulli"), ("relu", "ising")])
    def test_continuous_layers_against_a_sum_over_paths(
        self, pair: tuple[str, str], recorder: Recorder
    ) -> None:
        """A hidden layer can be enumerated: p_ann is a mixture of the layers that it selects."""
        rbm = random_rbm(pair, offsets=True, scale=1.5)
        assert pair[0] in CONTINUOUS
        path = GeometricPath(rbm, rbm.visible)
        v = rbm.sample(Size((5,)))
        p = continuous_annealing_model(path, BETAS, v)
        estimate = run(rbm, v, num_chains=5000)
        assert rows_z(estimate, p, recorder.log_weights).abs().max() < Z_LIMIT


def continuous_annealing_model(path: Path, betas: Tensor, v: Tensor) -> Tensor:
    """Density of the last state at v, with the visible states in between integrated by sampling.

    The chain of hidden states is all that matters; its transitions are averages over 200,000 draws of
    the visible layer given each hidden state, whose error is far below that of the estimates.
    """
    levels = betas[1:].tolist()
    h = states_of(path.target.transpose())
    base = path.machine(0.0)
    shape = Size((200_000,))
    start = base.visible.sample(base.weight.new_zeros(*shape, base.event_shape[0]))
    p = path.machine(levels[0]).hidden_given(start.unsqueeze(1)).log_prob(h).exp().mean(0)
    for before, after in itertools.pairwise(levels):
        x = path.machine(before).visible_given(h).sample(shape)
        matrix = path.machine(after).hidden_given(x.unsqueeze(2)).log_prob(h).exp().mean(0)
        p = p @ matrix
    return p @ path.machine(1.0).visible_given(h.unsqueeze(1)).log_prob(v).exp()


class TestMistakesAreCaught:
    @staticmethod
    def worst(recorder: Recorder) -> float:
        rbm = bimodal()
        p = annealing_model(GeometricPath(rbm, rbm.visible), BETAS)
        estimate = run(rbm, states_of(rbm))
        return rows_z(estimate, p, recorder.log_weights).abs().max().item()

    def test_nothing_wrong(self, recorder: Recorder) -> None:
        assert self.worst(recorder) < Z_LIMIT

    def test_the_machine_for_the_annealing_model(self, recorder: Recorder) -> None:
        rbm = bimodal()
        v = states_of(rbm)
        exact = log_likelihood(rbm, v, exact_log_partition(rbm)).exp()
        assert rows_z(run(rbm, v), exact, recorder.log_weights).abs().max() > 20.0

    def test_ratio_before_the_first_move(
        self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Plain reverse AIS from v."""
        monkeypatch.setattr(Path, "step", lambda self, v: v)
        assert self.worst(recorder) > 20.0

    def test_one_move_too_many(self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Path.step
        monkeypatch.setattr(Path, "step", lambda self, v: step(self, step(self, v)))
        assert self.worst(recorder) > 20.0

    def test_forgotten_base(self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
        zero = property(lambda self: torch.zeros((), dtype=torch.float64))
        monkeypatch.setattr(GeometricPath, "log_partition_base", zero)
        assert self.worst(recorder) > 20.0


class TestConservative:
    @staticmethod
    def mean_of(rbm: RBM, log_p: Tensor) -> Tensor:
        """Expectation under the machine of a number that every visible state has."""
        exact = log_likelihood(rbm, states_of(rbm), exact_log_partition(rbm)).exp()
        return (exact * log_p).sum()

    def test_on_average_over_the_machine(self) -> None:
        rbm = bimodal()
        v = states_of(rbm)
        exact = self.mean_of(rbm, log_likelihood(rbm, v, exact_log_partition(rbm)))
        annealed = self.mean_of(rbm, annealing_model(GeometricPath(rbm, rbm.visible), BETAS).log())
        assert annealed < exact - 0.3
        # With two chains a row the logarithm adds its own bias.
        estimates = [run(rbm, v, num_chains=2, seed=seed).row_values for seed in range(500)]
        means = torch.stack([self.mean_of(rbm, row) for row in estimates])
        assert z_score(means, annealed.item()) < -Z_LIMIT

    def test_converges_with_more_temperatures(self) -> None:
        rbm = bimodal()
        v = states_of(rbm)
        exact = log_likelihood(rbm, v, exact_log_partition(rbm))
        errors = []
        for number in (2, 20, 200):
            estimate = run(rbm, v, schedule="linear", num_temperatures=number, num_chains=500)
            errors.append((estimate.row_values - exact).abs().max().item())
        assert errors[0] > 1.0 and errors[1] < 0.6 * errors[0] and errors[2] < 0.2

    def test_bias_of_few_chains_is_seen(self) -> None:
        """The reported bias against the difference between few chains and very many."""
        rbm = bimodal()
        v = states_of(rbm)
        p = annealing_model(GeometricPath(rbm, rbm.visible), BETAS)
        few = [run(rbm, v, num_chains=8, seed=seed) for seed in range(500)]
        actual = (p.log() - torch.stack([e.row_values for e in few]).mean(0)).mean()
        reported = torch.stack([e.bias for e in few]).mean()
        assert 0.4 * actual < reported < 1.3 * actual and actual > 0.05


class TestMean:
    def test_control_variate(self) -> None:
        """The mean over all rows from chains at a few, far better than the mean of the few."""
        rbm = BernoulliRBM(torch.randn(6, 4), torch.randn(6), torch.zeros(4))
        data = rbm.sample(Size((2000,)))
        exact = log_likelihood(rbm, data, exact_log_partition(rbm))
        estimate = run(
            rbm, data, num_rows=50, num_chains=20, schedule="linear", num_temperatures=300
        )
        assert abs(estimate.value - exact.mean()) < Z_LIMIT * estimate.std_error + 0.02
        assert estimate.std_error < 0.1 * exact.std() / math.sqrt(50)
        few = estimate.row_values.mean()
        torch.testing.assert_close(few, exact[estimate.rows].mean(), atol=0.05, rtol=0.0)
        assert len(set(estimate.rows.tolist())) == 50

    def test_interval_covers(self) -> None:
        """100 runs; the annealing is good, so that its own mistake is small beside the error."""
        rbm = BernoulliRBM(torch.randn(6, 4), torch.randn(6), torch.zeros(4))
        data = rbm.sample(Size((500,)))
        exact = log_likelihood(rbm, data, exact_log_partition(rbm)).mean()
        options = {"num_rows": 20, "num_chains": 10, "schedule": "linear", "num_temperatures": 40}
        runs = [run(rbm, data, **{**options, "seed": seed}) for seed in range(100)]
        covered = sum(bool(r.lower < exact < r.upper) for r in runs)
        assert covered > 75
        spread = torch.stack([r.value for r in runs]).std()
        claimed = torch.stack([r.std_error for r in runs]).square().mean().sqrt()
        # The standard deviation of 100 values is known to 7 %.
        assert 0.65 < claimed / spread < 1.5

    def test_log_partition_is_that_of_the_rows(self) -> None:
        rbm = strong()
        data = rbm.sample(Size((300,)))
        estimate = run(rbm, data, num_chains=50, num_rows=100)
        log_z = estimate.log_partition
        assert log_z.side == "above"
        mean = log_likelihood(rbm, data, log_z).mean()
        torch.testing.assert_close(mean, estimate.value)
        assert log_z.lower < log_z.value < log_z.upper

    def test_batches(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        log_z = exact_log_partition(rbm)
        options = {"num_rows": None, "num_chains": 200, "num_temperatures": 200}
        v = rbm.visible.states(0, 8)
        shared = run(rbm.expand((4, 2, 3)), v, schedule="linear", **options)
        exact = -rbm.free_energy(v.reshape(8, 1, 1, 3)) - log_z
        assert shared.row_values.shape == (8, 4, 2, 3) and shared.value.shape == (4, 2, 3)
        torch.testing.assert_close(shared.row_values[:, 0], exact, atol=0.15, rtol=0.0)
        torch.testing.assert_close(shared.value[0], exact.mean(0), atol=0.05, rtol=0.0)
        own = run(rbm, v.reshape(8, 1, 1, 3).expand(8, 2, 3, 3), schedule="linear", **options)
        torch.testing.assert_close(own.row_values, shared.row_values[:, 0])


class TestInterface:
    def test_chunks_change_nothing_but_memory(self) -> None:
        rbm = strong()
        data = rbm.sample(Size((30,)))
        whole = run(rbm, data, num_chains=100, chunk_size=3000)
        parts = run(rbm, data, num_chains=100, chunk_size=250)
        single = run(rbm, data, num_chains=100, chunk_size=1)
        for other in (parts, single):
            errors = (whole.row_errors.square() + other.row_errors.square()).sqrt()
            assert ((whole.row_values - other.row_values).abs() < Z_LIMIT * errors).all()

    def test_seeds(self) -> None:
        rbm = strong()
        data = rbm.sample(Size((30,)))
        before = torch.get_rng_state()
        options = {"num_rows": 10, "num_chains": 5}
        first, second = run(rbm, data, **options), run(rbm, data, **options)
        other = run(rbm, data, **{**options, "seed": 2})
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first.row_values, second.row_values)
        assert torch.equal(first.rows, second.rows) and not torch.equal(first.rows, other.rows)

    def test_settings_and_words(self) -> None:
        rbm = strong()
        estimate = run(rbm, rbm.sample(Size((30,))), num_rows=10, num_chains=50)
        settings = estimate.settings
        assert settings["method"] == "raise" and settings["num_temperatures"] == 2
        assert (settings["num_rows"], settings["num_data"]) == (10, 30)
        assert json.loads(json.dumps(estimate.to_dict())) == estimate.to_dict()
        assert "by raise, 10 of 30 rows x 50 chains x 2 temperatures" in str(estimate)

    def test_suspicion(self) -> None:
        rbm = bimodal(1.0)
        estimate = run(rbm, states_of(rbm), num_chains=10, schedule=torch.tensor([0.0, 1.0]))
        assert not estimate.reliable and "effective chains of 10" in estimate.flags[0]
        assert "SUSPICIOUS" in str(estimate) and estimate.bias > 0.3

    def test_progress_bar(self, capfd: pytest.CaptureFixture[str]) -> None:
        rbm = strong()
        data = rbm.sample(Size((10,)))
        run(rbm, data, num_chains=5, progress=True)
        assert "raise: " in capfd.readouterr().err

    WRONG: list[tuple[dict[str, Any], str]] = [
        ({"num_rows": 1}, "num_rows must be at least 2, got 1"),
        ({"num_chains": 1}, "num_chains must be at least 2, got 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"base": "flat"}, "base must be None"),
        ({"data": torch.zeros(5, 4)}, r"data must have shape \(N, 3\) or .* got \(5, 4\)"),
        ({"data": torch.zeros(3)}, r"data must have shape \(N, 3\) or .* got \(3,\)"),
        ({"data": torch.zeros(1, 3)}, "data must have at least 2 rows .* got 1"),
        ({"data": torch.full((5, 3), 0.5)}, "rows outside of"),
    ]

    @pytest.mark.parametrize(("options", "message"), WRONG)
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        options = {"data": torch.zeros(5, 3), **options}
        with pytest.raises(ValueError, match=message):
            run(strong(), **{"num_chains": 5, **options})

    def test_wrong_paths(self) -> None:
        rbm, other = strong(), strong()
        path = GeometricPath(other, other.visible)
        with pytest.raises(ValueError, match="path must end at the machine"):
            run(rbm, torch.zeros(5, 3), path=path)
        with pytest.raises(ValueError, match="a path given has its own"):
            run(other, torch.zeros(5, 3), path=path, base="uniform")

    def test_no_machine(self) -> None:
        with pytest.raises(TypeError, match="dist must be an RBM, got Bernoulli"):
            run(units.Bernoulli(torch.zeros(2)), torch.zeros(5, 2))  # type: ignore[arg-type]


@pytest.mark.slow
def test_published_machine(shared_golden: Path_) -> None:
    """CD25(500): -86.39 by RAISE in the paper, -86.35 with the published log Z."""
    file = shared_golden / "cd25_500.npz"
    if not file.is_file():
        pytest.skip("needs the published model ../shared/golden/cd25_500.npz, beside the checkout")
    with np.load(file) as arrays:
        names = ("weight", "visible_bias", "hidden_bias")
        rbm = BernoulliRBM(*(torch.as_tensor(arrays[name]).float() for name in names))
        data = torch.as_tensor(np.unpackbits(arrays["test_bits"], axis=1))
        means = torch.as_tensor(arrays["train_mean"])
    # In one thread of a busy 2-core x86 machine: -86.548 +- 0.069 in 208 s.
    estimate = raise_log_likelihood(
        rbm,
        data,
        num_rows=40,
        num_chains=10,
        base=means,
        schedule="salakhutdinov-murray",
        seed=0,
    )
    assert abs(estimate.value.item() + 86.39) < 0.3 + 3.0 * estimate.std_error.item()
    assert estimate.std_error < 0.15 and estimate.reliable
