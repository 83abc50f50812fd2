# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Structure learning: edges against enumeration of all graphs, its parts against definitions, and a run."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM


@pytest.fixture(autouse=True)
def _double() -> Any:
    """The programs take the default type."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def program(load: Any) -> Any:
    return load("structure_learning")


@pytest.fixture
def potts(load: Any) -> Any:
    return load("potts_models")


@pytest.fixture
def families(load: Any) -> Any:
    return load("graph_families")


@pytest.fixture
def scores(load: Any) -> Any:
    return load("structure_scores")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def law(couplings: Tensor, p: int, q: int) -> Tensor:
    """log p(x) of all states, from the definition."""
    values = []
    for x in itertools.product(range(q), repeat=p):
        pairs = itertools.combinations(range(p), 2)
        values.append(sum(k for k, (i, j) in zip(couplings, pairs, strict=True) if x[i] == x[j]))
    return torch.tensor([float(v) for v in values]).log_softmax(0)


def rows_of(p: int, q: int, num_sets: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(q, (num_sets, n, p), generator=generator)


# --- the posterior --------------------------------------------------------------------------------


def edges_by_enumeration(prior: Tensor, x: Tensor, q: int, slab: float) -> tuple[Tensor, Tensor]:
    """Posterior probabilities of the three edges of three spins, and means of their couplings: all eight
    graphs, the strengths of each by Gauss-Hermite quadrature.

    :param prior: log-probabilities of the graphs, up to a constant.
    :param x: the data, shape ``(n, 3)``.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    pairs = list(itertools.combinations(range(3), 2))
    counts = [(x[:, i] == x[:, j]).sum().item() for i, j in pairs]
    states = np.array(list(itertools.product(range(q), repeat=3)))
    table = np.stack([states[:, i] == states[:, j] for i, j in pairs], 1).astype(float)
    evidence, coupling = [], []
    for graph in itertools.product([0, 1], repeat=3):
        grids = [slab * nodes if edge else np.zeros(1) for edge in graph]
        masses = [weights / weights.sum() if edge else np.ones(1) for edge in graph]
        k = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 3)
        mass = np.prod(np.stack(np.meshgrid(*masses, indexing="ij"), -1), -1).reshape(-1)
        log_z = np.log(np.exp(k @ table.T).sum(1))
        log_likelihood = k @ np.array(counts, dtype=float) - len(x) * log_z
        top = log_likelihood.max()
        joint = mass * np.exp(log_likelihood - top)
        evidence.append(math.log(joint.sum()) + top)
        coupling.append(joint @ k / joint.sum())
    weight = (prior + torch.tensor(evidence)).softmax(0)
    graphs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    return weight @ graphs, weight @ torch.tensor(np.array(coupling))


@pytest.mark.parametrize("q", [2, pytest.param(3, marks=pytest.mark.slow)], ids=["Ising", "Potts"])
def test_edges_against_all_graphs(program: Any, potts: Any, q: int) -> None:
    """Copies of a data set in the plate are independent chains, whose means have standard errors."""
    prior = BernoulliRBM(2.0 * random(3, 2), random(3, seed=1), random(2, seed=2))
    truth = torch.tensor([1.2, 0.0, -0.8])
    x = potts.sample(truth, 3, q, 25, torch.Generator().manual_seed(3))
    graphs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    probability, coupling = edges_by_enumeration(prior.log_prob(graphs), x, q, program.SLAB)
    copies = 200
    pyro.set_rng_seed(0)
    mcmc = pyro.infer.MCMC(program.make_kernel(3), 25, 25, disable_progbar=True)
    mcmc.run(prior, potts.ExactLikelihood(x.expand(copies, -1, -1), q))
    draws = mcmc.get_samples()
    for found, expected in (
        (draws["edges"], probability),
        (draws["edges"] * draws["strengths"], coupling),
    ):
        means = found.mean(0)
        error = means.std(0) / copies**0.5
        assert ((means.mean(0) - expected).abs() < 6.0 * error).all()
        assert error.max() < 0.03
    # Neither the prior nor the data say nothing.
    assert (probability - 0.5).abs().max() > 0.2


def test_density_of_the_program(program: Any, potts: Any) -> None:
    prior = BernoulliRBM(random(3, 2), random(3, seed=1), random(2, seed=2))
    x = rows_of(3, 2, 2, 8)
    values = {"edges": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "strengths": random(2, 3)}
    fixed = pyro.poutine.condition(program.model, data=values)
    trace = pyro.poutine.trace(fixed).get_trace(prior, potts.ExactLikelihood(x, 2))
    expected = prior.log_prob(values["edges"]).sum()
    expected = expected - (0.5 * values["strengths"].square() + 0.5 * math.log(2 * math.pi)).sum()
    place = torch.tensor([4, 2, 1])
    for k, rows in zip(values["edges"] * values["strengths"], x, strict=True):
        expected = expected + law(k, 3, 2)[rows @ place].sum()
    assert abs(trace.log_prob_sum() - expected) < 1e-9


# --- Potts models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [2, 3])
class TestPotts:
    def test_exact_likelihood(self, potts: Any, q: int) -> None:
        x, k = rows_of(4, q, 2, 5), random(3, 2, 6)
        place = torch.tensor([q**3, q**2, q, 1])
        got = potts.ExactLikelihood(x, q)(k)
        assert got.shape == (3, 2)
        for a, b in itertools.product(range(3), range(2)):
            assert abs(got[a, b] - law(k[a, b], 4, q)[x[b] @ place].sum()) < 1e-9

    def test_pseudo_likelihood(self, potts: Any, q: int) -> None:
        x, k, bias = rows_of(3, q, 2, 4), random(5, 2, 3), random(5, 2, 3 * q)
        assert potts.PseudoLikelihood(x, q).num_biases == 0
        likelihood = potts.PseudoLikelihood(x, q, biases=True)
        assert likelihood.num_biases == 3 * q
        got = likelihood(k, bias)
        pairs = [(0, 1), (0, 2), (1, 2)]
        for a, b in itertools.product(range(5), range(2)):
            total = 0.0
            for row, i in itertools.product(x[b], range(3)):
                field = bias[a, b, q * i : q * (i + 1)].clone()
                for value, pair in zip(k[a, b], pairs, strict=True):
                    if i in pair:
                        field[row[sum(pair) - i]] += value
                total += field.log_softmax(0)[row[i]]
            assert abs(got[a, b] - total) < 1e-9

    def test_machine(self, potts: Any, q: int) -> None:
        """The RBM with a hidden unit an edge is the Potts model."""
        k = random(6).abs()
        k[2] = 0.0
        machine = potts.potts_machine(k, 4, q)
        states = torch.nn.functional.one_hot(potts.all_states(4, q), q).flatten(1).double()
        got = machine.log_prob(states).log_softmax(0)
        torch.testing.assert_close(got, law(k, 4, q), rtol=0.0, atol=1e-9)
        with pytest.raises(ValueError, match="must not be negative"):
            potts.potts_machine(-k, 4, q)

    def test_draws(self, potts: Any, q: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """By enumeration and by block Gibbs."""
        k, n = torch.tensor([0.8, 0.1, 0.5]), 4000
        expected = law(k, 3, q).exp()
        for limit in (potts.MAX_STATES, 1):
            monkeypatch.setattr(potts, "MAX_STATES", limit)
            monkeypatch.setattr(potts, "_SWEEPS", 40)
            x = potts.sample(k, 3, q, n, torch.Generator().manual_seed(0))
            index = x @ torch.tensor([q**2, q, 1])
            rate = torch.bincount(index, minlength=q**3) / n
            assert ((rate - expected).abs() < 6.0 * (expected / n).sqrt()).all()


def test_too_many_states(potts: Any) -> None:
    assert not potts.can_enumerate(24, 2)
    with pytest.raises(ValueError, match="24 spins of 2 states are too many"):
        potts.all_states(24, 2)


# --- families, neighbourhoods, scores -------------------------------------------------------------


class TestFamilies:
    def test_lattice(self, families: Any, potts: Any) -> None:
        edges = potts.matrix(families.lattice(6, 3).double(), 6)
        neighbours = [row.nonzero().flatten().tolist() for row in edges]
        assert neighbours == [[1, 3], [0, 2, 4], [1, 5], [0, 4], [1, 3, 5], [2, 4]]
        assert families.widths(12) == [2, 3, 4, 6]

    def test_hubs(self, families: Any, potts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without noise, every spin but two hangs on one of the two."""
        monkeypatch.setattr(families, "KEEP", 1.0)
        monkeypatch.setattr(families, "EXTRA", 0.0)
        graphs = potts.matrix(families.hubs(50, 8, torch.Generator().manual_seed(0)), 8)
        degree = graphs.sum(-1)
        assert (degree.sum(-1) == 12).all()
        assert (degree.sort(-1).values[:, :6] <= 1).all()
        assert ((degree > 1).sum(-1) <= 2).all()

    def test_noise_of_graphs(self, families: Any) -> None:
        graphs = families.rasters(4000, 4, torch.Generator().manual_seed(0))
        rate, pattern = graphs.mean(0), families.lattice(4, 2)
        expected = torch.where(pattern, families.KEEP, families.EXTRA)
        error = (expected * (1.0 - expected) / 4000).sqrt()
        assert ((rate - expected).abs() < 6.0 * error).all()

    def test_the_machine_knows_the_family(self, families: Any) -> None:
        options = SimpleNamespace(seed=0, graphs=1500, hidden=5, epochs=15)
        priors, fits = families.fit_priors("rasters", 8, options)
        assert fits["RBM"] > fits["independent edges"] + 1.5
        rates = families.rasters(1500, 8, torch.Generator().manual_seed(0)).mean(0)
        torch.testing.assert_close(
            priors["independent edges"].visible.bias.sigmoid(), rates.clamp(1e-3, 1 - 1e-3)
        )
        # A fit of 15 epochs: about the same rates, not exactly.
        assert (families.edge_rates(priors["RBM"]) - rates).abs().max() < 0.1

    def test_rates_of_edges(self, families: Any) -> None:
        """Against the sum over all graphs."""
        prior = BernoulliRBM(2.0 * random(6, 3), random(6, seed=1), random(3, seed=2))
        graphs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
        expected = prior.log_prob(graphs).softmax(0) @ graphs
        torch.testing.assert_close(families.edge_rates(prior), expected, rtol=0.0, atol=1e-9)


class TestNeighbourhoods:
    @pytest.mark.parametrize("q", [2, 3])
    def test_edges_of_many_rows(self, scores: Any, potts: Any, q: int) -> None:
        truth = torch.tensor([1.0, 0.0, 0.0, 1.2, 0.0, -1.0])
        x = potts.sample(truth, 4, q, 800, torch.Generator().manual_seed(0))
        score, chosen = scores.neighbourhood_selection(x, q)
        got = scores.edge_scores(score, chosen, truth != 0.0)
        assert got["auc"] == 1.0 and got["f1"] > 0.7

    def test_biases_are_not_edges(self, scores: Any) -> None:
        """Spins that are up nearly always, each by itself: with a penalty of the intercept, the others
        would have to explain it."""
        rate, generator = 0.92, torch.Generator().manual_seed(0)
        x = torch.bernoulli(torch.full((100, 24), rate), generator=generator).long()
        _, chosen = scores.neighbourhood_selection(x, 2, intercept=True)
        assert chosen.sum() <= 3
        # All weights are zero under a strong penalty, which leaves the log-odds of the first state's rate.
        features, target = scores._regression(x, 0, 2)
        fitted = scores._regress(features, target, scores.PENALTIES[3], intercept=True)
        count = target.mean()
        assert not fitted.coef_.any()
        assert abs(fitted.intercept_[0] - math.log(count / (1.0 - count))) < 0.05
        assert -4.0 < fitted.intercept_[0] < -1.5

    def test_regression_is_that_of_the_model(self, scores: Any, potts: Any) -> None:
        """The log-odds of the model are linear in the features, with the couplings as weights."""
        k = torch.tensor([0.7, -0.4, 0.3])
        x = potts.all_states(3, 3)
        features, target = scores._regression(x, 1, 3)
        assert features.shape == (3 * 18, 2)
        expected = law(k, 3, 3)
        kept = (x[:, 1] == 0) | (x[:, 1] == 1)
        weights = k[[0, 2]].numpy()
        for row, feature in zip(x[kept], features[:18], strict=True):
            a, b = (torch.tensor([row[0], s, row[2]]) @ torch.tensor([9, 3, 1]) for s in (0, 1))
            assert abs(feature @ weights - (expected[a] - expected[b])) < 1e-9
        assert target[:18].sum() == 9


def test_scores(scores: Any) -> None:
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    got = scores.edge_scores(torch.tensor([0.9, 0.2, 0.5, 0.2]), torch.tensor([1, 0, 1, 0]), truth)
    # Pairs of an edge and another: three of four are in order, counting the tie as half: 2.5 / 4.
    assert got == {"auc": 0.625, "f1": 0.5}
    mean = scores.over_sets([{"auc": 1.0}, {"auc": 0.5}])
    assert mean == {"auc": 0.75, "auc_std_error": 0.25}


def test_starting_point(program: Any) -> None:
    """The pattern of the prior that the weaker posterior looks like, in every data set."""
    # One hidden unit that turns the first two edges on and the others off, or the reverse.
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    prior = BernoulliRBM(40.0 * sign[:, None], -20.0 * sign, torch.zeros(1))
    seen = torch.tensor([[0.8, 0.6, 0.6, 0.1], [0.2, 0.3, 0.4, 0.6]])
    weaker = program.Posterior(seen, 0.5 * seen, {"bias": torch.ones(2, 3)}, None, None)
    start = program.starting_point(prior, weaker)
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    assert (start["edges"] == expected).all()
    torch.testing.assert_close(start["strengths"], torch.full((2, 4), 0.5))
    assert torch.equal(start["bias"], torch.ones(2, 3))
    # The other pattern misses the evidence of all four edges.
    pyro.set_rng_seed(0)
    rates = prior.sample((500,)).mean(0)
    gap = ((seen.logit() - rates.logit()) @ (expected[0] - expected[1])).abs()
    pyro.set_rng_seed(0)
    torch.testing.assert_close(program.runner_up(prior, weaker), gap)
    assert gap.min() > 1.0


def test_one_pattern_has_no_runner_up(program: Any) -> None:
    bias = torch.tensor([8.0, 8.0, -8.0])
    prior = BernoulliRBM(torch.zeros(3, 1), bias, torch.zeros(1))
    weaker = program.Posterior(torch.full((2, 3), 0.5), torch.zeros(2, 3), {}, None, None)
    assert program.runner_up(prior, weaker).isinf().all()


@pytest.mark.parametrize("biases", [False, True])
def test_log_densities(program: Any, potts: Any, biases: bool) -> None:
    """Every draw and data set by itself."""
    prior = BernoulliRBM(random(3, 2), random(3, seed=1), random(2, seed=2))
    x = rows_of(3, 2, 2, 8)
    likelihood = potts.PseudoLikelihood(x, 2, biases)
    draws = {"edges": (random(4, 2, 3) > 0.0).double(), "strengths": random(4, 2, 3, seed=1)}
    if biases:
        draws["bias"] = random(4, 2, 6, seed=2)
    got = program.log_densities(prior, likelihood, draws)
    for i, k in itertools.product(range(4), range(2)):
        alone = potts.PseudoLikelihood(x[k : k + 1], 2, biases)
        edges, bias = draws["edges"][i, k], draws["bias"][i, k : k + 1] if biases else None
        spins = alone((edges * draws["strengths"][i, k])[None], bias)[0]
        assert abs(got[i, k] - (prior.log_prob(edges) + spins)) < 1e-9


# --- runs -----------------------------------------------------------------------------------------


def test_smoke(program: Any, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    options = program.parse(["--smoke", "--output", str(tmp_path)])
    report = program.run(options)
    found = report["sizes"][50]
    assert set(found) == {"independent edges", "RBM", "L1"}
    assert min(x["auc"] for x in found.values()) > 0.6
    assert len(found["RBM"]["runner_up"]) == len(found["RBM"]["log_density"][0]) == options.sets
    assert "runner_up" not in found["independent edges"]
    assert "log density[0]" in found["RBM"]["chains"]["rows"]
    assert {len(rates) for rates in report["edge_rates"].values()} == {28}
    assert json.loads((tmp_path / "report.json").read_text())["priors"] == report["priors"]
    for picture in ("scores", "graph"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5_000


def test_pixels(program: Any) -> None:
    """Neighbours of the digits' pixels, whose data sets share no image."""
    options = program.parse(["--pixels", "--sets", "2", "--sizes", "40"])
    problem = program.pixels(options)
    assert problem.spins.shape == (2, 40, 24) and problem.graphs[0].sum() == 38
    likelihood = program.make_likelihood(problem, 30, "auto")
    assert likelihood.num_biases == 48 and likelihood.num_rows == 30
    with pytest.raises(SystemExit):
        program.make_likelihood(problem, 30, "exact")
    with pytest.raises(SystemExit):
        program.pixels(program.parse(["--pixels", "--sets", "100", "--sizes", "40"]))
