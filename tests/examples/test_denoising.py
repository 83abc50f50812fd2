# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Denoising: its programs against quadrature and enumeration, its parts against definitions, and a run."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ebm import datasets
from pyro_ebm.distributions import DBM, BernoulliRBM
from pyro_ebm.distributions.units import Bernoulli

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def program(load: Any) -> Any:
    return load("denoising")


@pytest.fixture
def priors(load: Any) -> Any:
    return load("denoising_priors")


@pytest.fixture
def baselines(load: Any) -> Any:
    return load("denoising_baselines")


@pytest.fixture
def scores(load: Any) -> Any:
    return load("denoising_scores")


def double(*rows: Any) -> Tensor:
    """A number, a row, or several of them."""
    return torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=torch.float64)


def bits(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


# --- toy machines ---------------------------------------------------------------------------------

PIXELS = 4
SEEN_BITS = double([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0])
SEEN_REAL = double([0.9, 0.2, 1.3, 0.6], [-0.1, 0.4, 0.5, 0.1])
#: One pixel of the second image is hidden.
GIVEN = torch.tensor([[True, True, True, True], [True, True, True, False]])


def shallow() -> BernoulliRBM:
    generator = torch.Generator().manual_seed(3)
    weight = 1.5 * torch.randn(PIXELS, 3, generator=generator, dtype=torch.float64)
    return BernoulliRBM(weight, double([0.3, -0.5, 0.2, -1.0]), double([0.1, -0.2, 0.4]))


def deep() -> DBM:
    generator = torch.Generator().manual_seed(4)
    weights = [
        1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((PIXELS, 3), (3, 2))
    ]
    layers = [double([0.3, -0.5, 0.2, -1.0]), double([0.1, -0.2, 0.4]), double([0.5, -0.5])]
    return DBM([Bernoulli(bias) for bias in layers], weights)


def law_of_bits(machine: Any) -> Tensor:
    """log p(v) up to a constant by all hidden states, from the energy as it is written."""
    v = bits(PIXELS)
    if not isinstance(machine, DBM):
        b, c, w = machine.visible.bias, machine.hidden.bias, machine.weight
        h = bits(len(c))
        return ((v @ b)[:, None] + h @ c + v @ w @ h.T).logsumexp(1)
    biases = [unit.bias for unit in machine.units]
    first, second = bits(len(biases[1])), bits(len(biases[2]))
    upper = (
        (first @ biases[1])[:, None] + second @ biases[2] + first @ machine.weights[1] @ second.T
    )
    return (v @ biases[0]) + (v @ machine.weights[0] @ first.T + upper.logsumexp(1)).logsumexp(1)


def exact(machine: Any, log_prior: Tensor, log_likelihood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the grid of the noise, pixel means and the evidence (up to the machine's log Z).

    :param log_prior: of the points of a grid, with the log of their cells, shape ``(points,)``.
    :param log_likelihood: of both images, shape ``(points, states, 2)``.
    """
    joint = log_likelihood + law_of_bits(machine)[:, None]
    total = log_prior + joint.logsumexp(1).sum(-1)
    weight = total.softmax(0)
    means = torch.einsum("p,psr,sv->rv", weight, joint.softmax(1), bits(PIXELS))
    return weight, means, total.logsumexp(0)


def flips_exact(machine: Any, flip: Tensor) -> Tensor:
    """Every pixel that is given was flipped, or was not."""
    changed = (bits(PIXELS)[:, None] != SEEN_BITS).double()
    p = flip[:, None, None, None]
    return torch.where(GIVEN, changed * p.log() + (1 - changed) * (1 - p).log(), 0.0).sum(-1)


def standard_errors(
    draws: Tensor, expected: Tensor, least: Tensor | float = 0.0, num_batches: int = 20
) -> Tensor:
    """Distance of the mean from the truth in standard errors by batch means, which are at least those of
    independent draws with the given deviation; draws on the first axis."""
    batches = (
        draws[: len(draws) // num_batches * num_batches].unflatten(0, (num_batches, -1)).mean(1)
    )
    independent = torch.as_tensor(least) / len(draws) ** 0.5
    error = torch.maximum(batches.std(0) / num_batches**0.5, independent)
    return (batches.mean(0) - expected) / error


def draws_of(program: Any, noise: str, machine: Any, seen: Tensor, num_draws: int) -> Any:
    pyro.set_rng_seed(0)
    kernel = program.make_kernel(program.PROGRAMS[noise], 2, False)
    mcmc = pyro.infer.MCMC(kernel, num_draws, 40, disable_progbar=True)
    mcmc.run(machine, GIVEN, seen)
    return mcmc.get_samples()


@pytest.mark.slow
@pytest.mark.parametrize("machine", [shallow(), deep()], ids=["RBM", "DBM"])
def test_flips_against_quadrature(program: Any, machine: Any) -> None:
    edges = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
    flip = (edges[1:] + edges[:-1]) / 2
    prior = dist.Beta(double(1.0), double(4.0)).log_prob(flip)
    weight, means, _ = exact(machine, prior, flips_exact(machine, flip))
    draws = draws_of(program, "flips", machine, SEEN_BITS, 400)
    # A pixel that is nearly certain may not change in all draws.
    deviation = (means * (1 - means)).sqrt()
    assert standard_errors(draws["clean"], means, deviation).abs().max() < 6.0
    assert standard_errors(draws["flip"][:, 0], (weight * flip).sum()).abs() < 6.0


@pytest.mark.parametrize("machine", [shallow(), deep()], ids=["RBM", "DBM"])
@pytest.mark.parametrize("noise", ["flips", "gaussian"])
def test_posterior_given_the_noise(program: Any, noise: str, machine: Any) -> None:
    """The machine with a field, exactly: what a sweep of the compound kernel draws from."""
    values = {"flips": {"flip": 0.2}, "gaussian": {"scale": 0.5, "gain": 1.2, "offset": -0.1}}[
        noise
    ]
    seen = {"flips": SEEN_BITS, "gaussian": SEEN_REAL}[noise]
    fixed = program.given_noise(noise, {name: double([x]) for name, x in values.items()})
    _, posterior = program.rbm_posterior(fixed, machine, GIVEN, seen)
    if noise == "flips":
        log_likelihood = flips_exact(machine, double([0.2]))[0]
    else:
        log_p = dist.Normal(-0.1 + 1.2 * bits(PIXELS)[:, None], double(0.5)).log_prob(SEEN_REAL)
        log_likelihood = torch.where(GIVEN, log_p, 0.0).sum(-1)
    expected = (log_likelihood + law_of_bits(machine)[:, None]).log_softmax(0)
    got = law_of_rows(posterior)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-9)


def law_of_rows(machine: Any) -> Tensor:
    """log p(v) of a machine of two rows, shape ``(states, 2)``."""
    rows = []
    for k in range(2):
        if isinstance(machine, DBM):
            lowest = machine.units[0].replace(bias=machine.units[0].bias[k])
            row = DBM([lowest, *machine.units[1:]], machine.weights)
        else:
            row = BernoulliRBM(machine.weight, machine.visible.bias[k], machine.hidden.bias)
        rows.append(law_of_bits(row).log_softmax(0))
    return torch.stack(rows, 1)


@pytest.mark.slow
def test_gaussian_against_quadrature(program: Any) -> None:
    """A grid over all three parameters; the truth is exact to some digits."""
    machine = shallow()
    log_scale = torch.linspace(-3.5, 1.5, 41, dtype=torch.float64)
    log_gain = torch.linspace(-1.8, 1.8, 37, dtype=torch.float64)
    offset = torch.linspace(-1.6, 1.6, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(log_scale, log_gain, offset)
    unit = dist.Normal(double(0.0), 1.0)
    prior = unit.log_prob(grid[:, 0] + 1.0)
    prior = prior + unit.log_prob(grid[:, 1] / 0.5) + unit.log_prob(grid[:, 2] / 0.5)
    scale, gain, shift = grid[:, 0].exp(), grid[:, 1].exp(), grid[:, 2]
    states = bits(PIXELS)[:, None]
    parts = []
    for s, g, o in zip(
        *(x[:, None, None, None].split(4000) for x in (scale, gain, shift)), strict=True
    ):
        log_p = dist.Normal(o + g * states, s).log_prob(SEEN_REAL)
        parts.append(torch.where(GIVEN, log_p, 0.0).sum(-1))
    weight, means, _ = exact(machine, prior, torch.cat(parts))
    draws = draws_of(program, "gaussian", machine, SEEN_REAL, 1000)
    assert standard_errors(draws["clean"], means).abs().max() < 6.0
    for name, column in (("scale", 0), ("gain", 1)):
        expected = (weight * grid[:, column]).sum()
        assert standard_errors(draws[name][:, 0].log(), expected).abs() < 6.0
    assert standard_errors(draws["offset"][:, 0], (weight * shift).sum()).abs() < 6.0


def test_evidence_of_the_program(program: Any) -> None:
    """What the program says of all its sites, summed over images and noise."""
    machine = shallow()
    machine = machine.normalize(law_of_bits(machine).logsumexp(0))
    flip = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    flip = (flip[1:] + flip[:-1]) / 2
    log_beta = dist.Beta(double(1.0), double(4.0)).log_prob(flip)
    _, _, expected = exact(machine, log_beta, flips_exact(machine, flip))
    expected = expected - 2.0 * machine.log_partition
    totals = []
    for p in flip:
        per_state = []
        for v in bits(PIXELS):
            values = {"flip": p[None], "clean": v.expand(2, -1)}
            conditioned = pyro.poutine.condition(program.flips, data=values)
            trace = pyro.poutine.trace(conditioned).get_trace(machine, GIVEN, SEEN_BITS)
            trace.compute_log_prob()
            per_state.append(trace.nodes["clean"]["log_prob"] + trace.nodes["seen"]["log_prob"])
        totals.append(torch.stack(per_state).logsumexp(0).sum())
    got = (torch.stack(totals) + log_beta).logsumexp(0)
    assert abs(got - expected) < 1e-9


def test_noise_of_every_image(program: Any) -> None:
    """One parameter an image: each is found from its own pixels."""
    flip = double([0.05, 0.4])
    clean = torch.zeros(2, 400, dtype=torch.float64)
    clean[:, ::2] = 1.0
    # The prior knows the image.
    machine = BernoulliRBM(torch.zeros(400, 1).double(), 20.0 * clean[0] - 10.0, double([0.0]))
    given = torch.ones(2, 400, dtype=torch.bool)
    pyro.set_rng_seed(1)
    seen = program.FlippedBits(clean, flip.unsqueeze(-1)).sample()
    options = SimpleNamespace(chains=1, seed=0, sweeps=1, draws=20, warmup=20, per_image=True)
    found = program.infer("flips", machine, given, seen, options)
    assert found.parameters["flip"].shape == (1, 20, 2)
    rate = (seen != clean).double().mean(1)
    assert (found.parameters["flip"].mean((0, 1)) - rate).abs().max() < 0.05


class TestFlippedBits:
    def test_values_are_those_of_bernoulli(self, program: Any) -> None:
        clean, seen = bits(2)[:, None], bits(2)
        got = program.FlippedBits(clean, double(0.2)).log_prob(seen)
        expected = dist.Bernoulli(0.2 + 0.6 * clean).log_prob(seen)
        torch.testing.assert_close(got, expected)

    def test_draws(self, program: Any) -> None:
        pyro.set_rng_seed(0)
        clean = double([0.0, 1.0])
        law = program.FlippedBits(clean, double(0.2)).expand([3, 2])
        draws = law.sample((20_000,))
        assert draws.shape == (20_000, 3, 2)
        changed = (draws != clean).double().mean((0, 1))
        assert (changed - 0.2).abs().max() < 6.0 * (0.16 / 60_000) ** 0.5


# --- priors ---------------------------------------------------------------------------------------


def test_ising_machine_is_the_ising_model(priors: Any) -> None:
    edges = priors.lattice_edges(2, 3)
    assert edges.T.tolist() == [[0, 3], [1, 4], [2, 5], [0, 1], [1, 2], [3, 4], [4, 5]]
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    coupling = torch.rand(7, generator=generator, dtype=torch.float64)
    coupling[0] = 0.0
    v = bits(6)
    s = 2.0 * v - 1.0
    expected = (s @ bias + (s[:, edges[0]] * s[:, edges[1]]) @ coupling).log_softmax(0)
    got = priors.ising_machine(bias, coupling, edges).log_prob(v).log_softmax(0)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-9)
    with pytest.raises(ValueError, match="coupling must not be negative"):
        priors.ising_machine(bias, -coupling, edges)


def test_fitted_lattice(priors: Any) -> None:
    """The pseudo-likelihood finds the couplings of draws."""
    edges = priors.lattice_edges(2, 2)
    truth = priors.ising_machine(double([0.2, -0.1, 0.3, 0.0]), double([0.2, 0.6, 0.4, 0.3]), edges)
    generator = torch.Generator().manual_seed(0)
    rows = truth.sample((5_000,), generator=generator)
    fitted = priors.fit_lattice(rows, (2, 2))
    expected, got = (m.log_prob(bits(4)).softmax(0) for m in (truth, fitted))
    assert (got - expected).abs().max() < 0.03


def test_independent_pixels(priors: Any) -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    law = priors.independent_pixels(rows).log_prob(bits(2).float()).softmax(0)
    torch.testing.assert_close(law, torch.tensor([3.0, 1.0, 9.0, 3.0]) / 16.0)


def test_a_machine_of_other_images(priors: Any, program: Any, tmp_path: Path) -> None:
    options = program.parse(
        ["--smoke", "--model", str(ROOT / "examples/models/nbm-mnist.safetensors")]
    )
    with pytest.raises((TypeError, ValueError)):
        priors.trained_machine(datasets.load("digits"), options)


# --- filters and scores ---------------------------------------------------------------------------


def test_total_variation_is_a_minimum(baselines: Any) -> None:
    """No change nearby has a smaller value of what is minimised."""
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 16, generator=generator, dtype=torch.float64)

    def objective(x: Tensor) -> float:
        slope = baselines._gradient(x.reshape(1, 4, 4))
        return (0.5 * (x - y).square().sum() + 0.3 * slope.norm(dim=0).sum()).item()

    best = baselines.total_variation(y, (4, 4), 0.3, 3000)
    value = objective(best)
    for _ in range(200):
        step = 0.01 * torch.randn(1, 16, generator=generator, dtype=torch.float64)
        assert objective(best + step) > value - 1e-6
    assert value < objective(y) and value < objective(y.mean().expand_as(y))


def test_median(baselines: Any) -> None:
    image = torch.zeros(1, 25)
    image[0, 12] = 1.0
    assert baselines.median(image, (5, 5)).sum() == 0.0
    assert torch.equal(baselines.median(1.0 - image, (1, 5, 5)), torch.ones(1, 25))


def test_scores(scores: Any) -> None:
    clean = double([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    estimate = double([0.9, 0.1, 0.4, 0.1], [0.9, 0.9, 0.1, 0.1])
    got = scores.scores(estimate, clean)
    assert got["error"] == 0.125
    assert abs(got["error_std_error"] - 0.125) < 1e-12
    expected = -10.0 * math.log10((7 * 0.01 + 0.36) / 8)
    assert abs(got["psnr"] - expected) < 1e-9


def test_report_of_noise(scores: Any) -> None:
    draws = {"flip": torch.linspace(0.0, 1.0, 1001).reshape(7, 143, 1)}
    got = scores.noise_report(draws, {"flip": 0.96})["flip"]
    assert abs(got["low"] - 0.025) < 1e-6 and abs(got["high"] - 0.975) < 1e-6
    assert abs(got["mean"] - 0.5) < 1e-6 and got["covered"] == 1.0
    assert scores.noise_report(draws, {"flip": 0.98})["flip"]["covered"] == 0.0


def test_mode_is_uphill(program: Any) -> None:
    """No flip of one side of the machine alone is an improvement, and flips are not far from what is seen."""
    machine = shallow()
    values = {"flip": double([0.1])}
    start = torch.full((2, PIXELS), 0.4, dtype=torch.float64)
    fixed = program.given_noise("flips", values)
    found = program.mode(fixed, machine, GIVEN, SEEN_BITS, start, False)
    assert found.shape == (2, PIXELS) and bool(((found == 0) | (found == 1)).all())
    h = machine.hidden.mean(machine.hidden_field(found)).round()
    logit = double(0.9).logit()
    field = torch.where(GIVEN, (2.0 * SEEN_BITS - 1.0) * logit, 0.0)
    total = machine.visible.bias + h @ machine.weight.T + field
    assert torch.equal(found, (total > 0.0).double())


def test_occlusion(program: Any) -> None:
    given = program.occlusion((4, 3), 2, 0.5)
    assert given.shape == (2, 12)
    assert given[1].reshape(4, 3)[:, 0].tolist() == [True, False, False, True]
    with pytest.raises(SystemExit):
        program.parse(["--occlude", "1.0"])


# --- runs -----------------------------------------------------------------------------------------


def test_smoke(program: Any, tmp_path: Path) -> None:
    options = program.parse(["--smoke", "--occlude", "0.25", "--output", str(tmp_path)])
    report = program.run(options)
    images = report["images"]
    assert images["machine"]["given"]["error"] < images["what is seen"]["given"]["error"]
    assert 0.0 < images["machine"]["hidden"]["error"] < 0.5
    assert 0.05 < report["noise"]["machine"]["flip"]["mean"] < 0.3
    assert not report["noise"]["machine, noise known"]
    assert report["fitted_on"]["Ising lattice"] == 1000 < report["fitted_on"]["machine"]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["images"] == images
    for picture in ("images", "noise", "calibration"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5_000
