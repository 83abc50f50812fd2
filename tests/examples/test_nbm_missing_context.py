# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""A neural Boltzmann machine with missing covariates: evidence and posteriors against quadrature."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from torch import Generator, Tensor

from pyro_ebm.distributions import UnnormalizedGradientError
from pyro_ebm.infer import ContrastiveDivergence

ROOT = Path(__file__).resolve().parent.parent.parent
#: Rows with one, the other, both and no missing covariates.
OBSERVED = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
#: Nodes and weights of quadrature over one covariate: the trapezium rule, exact to rounding for smooth laws.
NODES = torch.linspace(-12.0, 12.0, 301, dtype=torch.float64)
STEP = 24.0 / 300


@pytest.fixture
def programs(load: Any) -> dict[str, Any]:
    """The example's modules: they find each other in their own folder."""
    names = ("missing_context", "nbm_missing_context")
    return {name: load(name) for name in names}


@pytest.fixture
def module(programs: dict[str, Any]) -> Any:
    """Two covariates, two outcomes, two hidden spins each, in float64, with parameters that matter."""
    torch.set_default_dtype(torch.float64)
    made = programs["missing_context"].MissingContext(2, 2, 2, 2, width=4, seed=0)
    generator = Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            scale = 0.3 if "log_precision" in name or "proposal" in name else 0.7
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return made


def rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(4)
    x, y = (torch.randn(4, 2, generator=generator).double() for _ in range(2))
    return torch.where(OBSERVED, x, torch.nan), OBSERVED, y


def log_normal_mixture(
    value: Tensor, loc: Tensor, precision: Tensor, weight: Tensor, bias: Tensor, offset: Tensor
) -> Tensor:
    """log p of a Gaussian layer beside spins from the definition: all spins, and normal densities.

    The energy is ``(v - loc)' P (v - loc) / 2 - (v - offset)' W h - b'h``.
    """
    log_p, densities = [], []
    for state in itertools.product((-1.0, 1.0), repeat=weight.shape[-1]):
        h = torch.tensor(state, dtype=torch.float64)
        pull = weight @ h
        log_p.append(
            (bias * h).sum(-1)
            + ((loc - offset) * pull).sum(-1)
            + 0.5 * (pull**2 / precision).sum(-1)
        )
        z = (value - loc - pull / precision) * precision.sqrt()
        densities.append((-0.5 * z**2 + 0.5 * (precision / (2.0 * math.pi)).log()).sum(-1))
    table = torch.stack([p.expand(densities[0].shape) for p in log_p])
    return torch.logsumexp(table.log_softmax(0) + torch.stack(densities), 0)


def log_x(module: Any, x: Tensor) -> Tensor:
    own = module.covariates
    unit = own.visible()
    return log_normal_mixture(
        x, unit.loc, unit.precision, own.weight, own.hidden().bias, torch.zeros(2)
    )


def log_y(module: Any, y: Tensor, x: Tensor) -> Tensor:
    """Given covariates of any batch shape."""
    own = module.outcomes
    unit = own.visible_unit(x)
    loc, precision = unit.loc, unit.precision
    weight = own.weight(x) / 2**0.5
    return log_normal_mixture(y, loc, precision, weight, own.hidden_bias(x), loc)


def grid(row: int) -> Tensor:
    """Covariates of a row on a grid over what is missing, shape ``(points, 2)``."""
    x, observed, _ = rows()
    axes = [x[row, i].reshape(1) if observed[row, i] else NODES for i in range(2)]
    return torch.cartesian_prod(*axes)


class Quadrature:
    """Evidence and posterior of one row."""

    @torch.no_grad()
    def __init__(self, module: Any, row: int) -> None:
        _, observed, y = rows()
        self.points = grid(row)
        volume = STEP ** int((~observed[row]).sum())
        log_prior = log_x(module, self.points)
        log_joint = log_prior + log_y(module, y[row], self.points)
        self.log_evidence = torch.logsumexp(log_joint, 0) + math.log(volume)
        #: log p(y | x observed)
        self.log_predictive = torch.logsumexp(log_joint, 0) - torch.logsumexp(log_prior, 0)
        self.weights = log_joint.softmax(0)
        self.mean = self.weights @ self.points
        self.std = (self.weights @ (self.points - self.mean) ** 2).sqrt()


def trace_log_prob(module: Any, x: Tensor, observed: Tensor, y: Tensor, latent: Tensor) -> Tensor:
    """Log-joint of the Pyro program by row."""
    program = poutine.condition(module.model, data={"latent": latent})
    trace = poutine.trace(program).get_trace(x, observed, y)
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in ("latent", "x", "y"))


@torch.no_grad()
def test_the_program_integrates_to_the_evidence(module: Any) -> None:
    x, observed, y = rows()
    for row in range(4):
        points = grid(row)
        count = len(points)
        log_joint = trace_log_prob(
            module,
            x[row].expand(count, -1),
            observed[row].expand(count, -1),
            y[row].expand(count, -1),
            torch.where(observed[row], torch.zeros(2), points),
        )
        missing = int((~observed[row]).sum())
        # The noise of known entries integrates to one: at zero its density is that of a standard normal.
        noise = (2 - missing) * 0.5 * math.log(2.0 * math.pi)
        value = torch.logsumexp(log_joint, 0) + missing * math.log(STEP) + noise
        exact = Quadrature(module, row).log_evidence
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-9)


@torch.no_grad()
def test_predictive_density(programs: dict[str, Any], module: Any) -> None:
    x, observed, y = rows()
    own = programs["missing_context"]
    generator = Generator().manual_seed(0)
    value, error = own.log_density(module, x, observed, y, 20_000, generator)
    mixture = own.mixture(module, x, observed, 2000, generator)
    for row in range(4):
        exact = Quadrature(module, row)
        tolerance = max(6.0 * error[row].item(), 1e-9)
        assert value[row].item() == pytest.approx(exact.log_predictive.item(), abs=tolerance)
        # Marginals of both outcomes: their mean by quadrature over y as well.
        if row != 2:
            prior = log_x(module, exact.points).softmax(0)
            machine = module.outcomes.condition(exact.points)
            mean = prior @ own.marginal_mixture(machine).mean
            close = (
                6.0 * (prior @ (own.marginal_mixture(machine).mean - mean) ** 2).sqrt() / 2000**0.5
            )
            assert bool((mixture.mean[row] - mean).abs().le(close + 1e-9).all())
    # Where nothing is missing there is nothing to estimate.
    assert error[3] < 1e-12


@torch.no_grad()
def test_weighted_draws_are_the_posterior(programs: dict[str, Any], module: Any) -> None:
    x, observed, y = rows()
    samples, weights = programs["missing_context"].posterior_by_weights(
        module, x, observed, y, 40_000, Generator().manual_seed(1)
    )
    for row in range(3):
        exact = Quadrature(module, row)
        w = weights[:, row].unsqueeze(-1)
        mean = (w * samples[:, row]).sum(0)
        error = (w * (samples[:, row] - mean)).square().sum(0).sqrt()
        missing = ~observed[row]
        assert bool(((mean - exact.mean).abs() < 6 * error)[missing].all())


def test_elbo_is_evidence_less_divergence(module: Any) -> None:
    """The mean of the ELBO over its own guide, by quadrature over the one missing covariate."""
    x, observed, y = (t[:1] for t in rows())
    with torch.no_grad():
        loc, scale = (t[0, 1] for t in module.proposals(x, observed, y))
        exact = Quadrature(module, 0)
        log_q = torch.distributions.Normal(loc, scale).log_prob(NODES)
        log_joint = log_x(module, exact.points) + log_y(module, y[0], exact.points)
        expected = (log_q.exp() * (log_joint - log_q)).sum().item() * STEP
        variance = (log_q.exp() * (log_joint - log_q - expected) ** 2).sum().item() * STEP
    count = 4000
    elbo = Trace_ELBO(num_particles=count, vectorize_particles=True, max_plate_nesting=1)
    value = -elbo.loss(module.model, module.guide, x, observed, y)
    assert abs(value - expected) < 6.0 * (variance / count) ** 0.5
    assert expected < exact.log_evidence


def test_gradient_with_exact_log_partitions(module: Any) -> None:
    """With nothing missing the ELBO is the log-likelihood: its gradient against finite differences."""
    x, _, y = (t[3:] for t in rows())
    observed = torch.ones(1, 2, dtype=torch.bool)
    loss = ContrastiveDivergence(elbo=Trace_ELBO())
    loss.loss_and_grads(module.model, module.guide, x, observed, y)
    step, generator = 1e-6, Generator().manual_seed(11)
    for name, parameter in module.named_parameters():
        if "proposal" in name:
            continue
        # Along a random direction, in which all entries take part.
        direction = torch.randn(parameter.shape, generator=generator)
        before = parameter.detach().clone()
        values = []
        with torch.no_grad():
            for sign in (1.0, -1.0):
                parameter.copy_(before + sign * step * direction)
                values.append((log_x(module, x) + log_y(module, y, x)).sum().item())
            parameter.copy_(before)
        expected = -(values[0] - values[1]) / (2 * step)
        found = (parameter.grad * direction).sum().item()
        assert found == pytest.approx(expected, abs=1e-7, rel=1e-6), name


def test_nuts_samples_the_missing_covariates(programs: dict[str, Any], module: Any) -> None:
    x, observed, y = (t[:2] for t in rows())
    pyro.set_rng_seed(0)
    program = programs["missing_context"].fixed(module, x, observed, y)
    mcmc = MCMC(NUTS(program, max_tree_depth=2), 250, 50, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["latent"]
    summary = mcmc.diagnostics()["latent"]["n_eff"]
    for row, column in ((0, 1), (1, 0)):
        exact = Quadrature(module, row)
        count = float(summary[row, column].clamp(max=250.0))
        error = exact.std[column] / count**0.5
        assert abs(draws[:, row, column].mean() - exact.mean[column]) < 6.0 * error
        fourth = (exact.weights @ (exact.points - exact.mean) ** 4)[column]
        # Of the variance, relative.
        error = ((fourth / exact.std[column] ** 4 - 1.0) / count) ** 0.5
        assert error < 0.12
        assert abs(draws[:, row, column].var() / exact.std[column] ** 2 - 1.0) < 6.0 * error


def test_missing_values_are_not_read(programs: dict[str, Any], module: Any) -> None:
    x, observed, y = rows()
    filled = torch.where(observed, x, 1e3)
    losses = []
    for values in (x, filled):
        pyro.set_rng_seed(1)
        loss = ContrastiveDivergence(elbo=Trace_ELBO())
        losses.append(loss.loss_and_grads(module.model, module.guide, values, observed, y))
    assert losses[0] == losses[1]
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())


def test_hmc_without_log_partition_is_refused(
    programs: dict[str, Any], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs["missing_context"], "normalized", lambda machine: machine)
    program = programs["missing_context"].fixed(module, *rows())
    with pytest.raises(UnnormalizedGradientError, match="log Z is not attached"):
        MCMC(NUTS(program), 2, 2, disable_progbar=True).run()


def test_svi_raises_the_evidence(programs: dict[str, Any], module: Any) -> None:
    x, observed, y = rows()
    before = sum(Quadrature(module, row).log_evidence for row in range(4))
    svi = SVI(
        module.model,
        module.guide,
        pyro.optim.Adam({"lr": 0.02}),
        loss=ContrastiveDivergence(elbo=Trace_ELBO()),
    )
    for _ in range(40):
        svi.step(x, observed, y)
    assert sum(Quadrature(module, row).log_evidence for row in range(4)) > before + 1.0


def test_checks_see_a_wrong_scale(programs: dict[str, Any]) -> None:
    """Outcomes of twice the scale are far in the tail of the replications."""
    torch.manual_seed(0)
    own = programs["nbm_missing_context"]
    x = torch.randn(60, 2)
    observed = torch.ones(60, 2, dtype=torch.bool)
    module = programs["missing_context"].MissingContext(2, 2, 1, 1)
    with torch.no_grad():
        y = module.outcomes.condition(x).sample()
    right = own.predictive_check(module, (x, observed, y), 200)
    wrong = own.predictive_check(module, (x, observed, 2.0 * y), 200)
    assert right["sd of progression"]["p_value"] > 0.01
    assert wrong["sd of progression"]["p_value"] < 0.01


def test_test_rows_are_filled_as_training_rows_were(programs: dict[str, Any]) -> None:
    """The machine that fills gaps is not the one that training on filled rows has changed."""
    own = programs["nbm_missing_context"]
    options = own.parse(["--smoke"])
    options.start_steps, options.steps = 5, 5
    training, test = own.split(0, options)
    seen = []
    fill = own.filled

    def recorded(how: str, module: Any, x: Tensor, observed: Tensor) -> Tensor:
        seen.append((module, fill(how, module, x, observed)))
        return seen[-1][1]

    own.filled = recorded
    try:
        module = own.train("conditional", training, 0, options)
    finally:
        own.filled = fill
    assert seen[0][0] is module
    assert torch.equal(fill("conditional", module, *training[:2]), seen[0][1])
    trained = fill("conditional", own.train("joint", training, 0, options), *training[:2])
    assert not torch.equal(trained, seen[0][1])
    assert 1.0 < -own.scores("conditional", module, test, options)["log_likelihood"] < 5.0


def test_split_standardises_what_is_known(programs: dict[str, Any]) -> None:
    own = programs["nbm_missing_context"]
    options = own.parse(["--smoke"])
    (x, observed, y), test = own.split(0, options)
    assert len(x) == options.rows and len(test[0]) == 442 - options.rows
    known = torch.where(observed, x, torch.nan)
    torch.testing.assert_close(known.nanmean(0), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(2), atol=1e-4, rtol=0)


def test_smoke(tmp_path: Path) -> None:
    program = ROOT / "examples" / "nbm_missing_context.py"
    command = [sys.executable, program, "--smoke", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads((tmp_path / "nbm_missing_context.json").read_text())
    assert set(report["scores"]) == {"joint", "means"}
    assert all(-4.0 < runs[0]["log_likelihood"] < -1.0 for runs in report["scores"].values())
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "check.png",
        "posterior.png",
        "predictive.png",
    ]
