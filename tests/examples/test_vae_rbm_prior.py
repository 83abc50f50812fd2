# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The program of autoencoders: its model against enumeration, its parts, and a run."""

import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_ebm import datasets

PIXELS, LATENT, HIDDEN = 5, 4, 3
PRIORS = ("rbm", "independent")


@pytest.fixture
def program(load: Any) -> Iterator[Any]:
    """The program as a module: it finds its neighbours in its own folder."""
    pyro.clear_param_store()
    yield load("vae_rbm_prior")
    pyro.clear_param_store()


def binary_states(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def toy(program: Any, prior: str) -> tuple[Any, Tensor]:
    """A model of random parameters in float64, and three images."""
    options = program.parse([])
    vars(options).update(latent=LATENT, hidden=HIDDEN, encoder=[6], decoder=[4])
    vae = program.build(prior, torch.rand(10, PIXELS), options).double()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in vae.named_parameters():
        # A guide that is far from the prior would need many particles.
        scale = 0.4 if name.startswith("encoder") else 0.8
        parameter.data.normal_(0.0, scale, generator=generator)
    images = torch.bernoulli(torch.full((3, PIXELS), 0.5), generator=generator).double()
    return vae, images


class Enumerated:
    """Everything about a toy model by all states of z and of the hidden units, from the formulas as they are
    written."""

    @torch.no_grad()
    def __init__(self, vae: Any, images: Tensor) -> None:
        self.z = binary_states(LATENT)
        own = dict(vae.named_parameters())
        if "prior.weight" in own:
            h = binary_states(HIDDEN)
            v_bias, h_bias = own["prior.visible.bias"], own["prior.hidden.bias"]
            joint = (self.z @ v_bias)[:, None] + h @ h_bias + self.z @ own["prior.weight"] @ h.T
            self.log_z = joint.flatten().logsumexp(0)
            self.log_prior = joint.logsumexp(1) - self.log_z
        else:
            bias = own["prior.bias"]
            self.log_prior = (self.z * logsigmoid(bias) + (1 - self.z) * logsigmoid(-bias)).sum(-1)

        def network(name: str, x: Tensor) -> Tensor:
            hidden = (x @ own[f"{name}.0.weight"].T + own[f"{name}.0.bias"]).clamp(min=0.0)
            return hidden @ own[f"{name}.2.weight"].T + own[f"{name}.2.bias"]

        def mass(bits: Tensor, logits: Tensor) -> Tensor:
            return (bits * logits - softplus(logits)).sum(-1)

        # Shapes (states, images).
        self.log_q = mass(self.z[:, None], network("encoder", images))
        self.log_pixels = mass(images, network("decoder", self.z)[:, None])
        self.q = self.log_q.exp()
        self.log_evidence = (self.log_pixels + self.log_prior[:, None]).logsumexp(0)

    def elbo(self, kl_weight: float = 1.0) -> Tensor:
        ratio = self.log_prior[:, None] - self.log_q
        return (self.q * (self.log_pixels + kl_weight * ratio)).sum(0)


@torch.no_grad()
def traced(vae: Any, images: Tensor, z: Tensor, log_z: Tensor | float, **options: Any) -> Tensor:
    """log p(x, z) - log q(z | x) of the Pyro programs at a z, by image, the machine normalised."""
    with poutine.block():
        guide = poutine.trace(poutine.condition(vae.guide, {"z": z})).get_trace(images, **options)
        model = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(images, **options)
    total: Any = 0.0
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        for name in ("z", "x"):
            if name in trace.nodes:
                site = trace.nodes[name]
                scale = site["scale"]
                log_prob = site["fn"].log_prob(site["value"]) * scale
                total = total + sign * log_prob
    return total - log_z * options.get("kl_weight", 1.0)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_programs_are_the_enumerated_bound(program: Any, prior: str, kl_weight: float) -> None:
    vae, images = toy(program, prior)
    exact = Enumerated(vae, images)
    log_z = exact.log_z if prior == "rbm" else 0.0
    ratios = torch.stack(
        [traced(vae, images, state.expand(3, -1), log_z, kl_weight=kl_weight) for state in exact.z]
    )
    got = (exact.q * ratios).sum(0)
    torch.testing.assert_close(got, exact.elbo(kl_weight), rtol=0.0, atol=1e-9)
    assert bool((exact.elbo() < exact.log_evidence - 1e-3).all())


@pytest.mark.parametrize("prior", PRIORS)
def test_terms_and_bound(program: Any, prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within six standard errors of enumeration; the bound by many particles is the evidence."""
    evaluation = importlib.import_module("vae_evaluation")
    vae, images = toy(program, prior)
    exact = Enumerated(vae, images)
    torch.manual_seed(0)
    log_z = evaluation.log_partition(vae, images, 10, 10)
    assert abs(log_z.item() - (exact.log_z if prior == "rbm" else 0.0)) < 1e-9
    draws = 20_000
    terms = evaluation.bound_terms(vae, images, log_z, draws)
    expected = {
        "reconstruction": exact.log_pixels,
        "prior": exact.log_prior[:, None],
    }
    for name, values in expected.items():
        mean = (exact.q * values).sum(0)
        error = ((exact.q * values.square()).sum(0) - mean.square()).sqrt() / draws**0.5
        assert bool(((terms[name] - mean).abs() < 6.0 * error).all()), name
        assert bool((error < 0.03).all()), name
    entropy = -(exact.q * exact.log_q).sum(0)
    torch.testing.assert_close(terms["entropy"], entropy, rtol=0.0, atol=1e-9)
    whole = evaluation.summary(terms)
    assert abs(whole["elbo"] - sum(rows.mean().item() for rows in terms.values())) < 1e-9
    monkeypatch.setattr(evaluation, "_PARTICLES", 5000)
    bound = evaluation.likelihood_bound(vae, images, log_z, 20_000)
    error = bound.weights.std_error
    assert bool(((bound.rows - exact.log_evidence).abs() < 6.0 * error).all())
    assert bool((error < 0.05).all())


def test_rows_come_in_their_order(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of images are joined as they were."""
    evaluation = importlib.import_module("vae_evaluation")
    vae, images = toy(program, "rbm")
    exact = Enumerated(vae, images)
    monkeypatch.setattr(evaluation, "_CHUNK", 2)
    torch.manual_seed(0)
    monkeypatch.setattr(evaluation, "_PARTICLES", 4000)
    bound = evaluation.likelihood_bound(vae, images, exact.log_z, 4000)
    assert bool(((bound.rows - exact.log_evidence).abs() < 6.0 * bound.weights.std_error).all())


def test_prior_draws(program: Any) -> None:
    """Chains from fair coins have the means of the enumerated prior, for both priors."""
    pictures = importlib.import_module("vae_pictures")
    for prior in PRIORS:
        vae, images = toy(program, prior)
        exact = Enumerated(vae, images)
        count = 20_000
        draws = pictures.draw_prior(vae, count, 100).double()
        mass = exact.log_prior.exp()
        # Means and second moments, of which the machine's are no products.
        for power in (exact.z, (exact.z[:, :, None] * exact.z[:, None]).flatten(1)):
            expected = mass @ power
            got = draws if power is exact.z else (draws[:, :, None] * draws[:, None]).flatten(1)
            error = (expected * (1 - expected) / count).sqrt()
            assert bool(((got.mean(0) - expected).abs() < 6.0 * error).all()), prior


def test_twins_have_as_many_parameters(program: Any) -> None:
    options = program.parse([])
    images = torch.rand(20, 784)
    own, other = (
        program.count_parameters(program.build(prior, images, options)) for prior in PRIORS
    )
    # A unit more in either hidden layer.
    assert own <= other < own + 2 * (784 + options.latent + 1)
    start = [program.build(prior, images, options) for prior in PRIORS]
    for vae in start:
        torch.testing.assert_close(list(vae.decoder)[-1].bias.sigmoid(), images.mean(0))


def test_no_place_for_parameters(program: Any) -> None:
    with pytest.raises(ValueError, match="no place for further parameters"):
        importlib.import_module("vae_model").twin_sizes(9, 4, [], [], 20)


@pytest.mark.parametrize("relaxed_epochs", [0, 25])
@pytest.mark.parametrize("prior", PRIORS)
def test_training_raises_the_evidence(program: Any, prior: str, relaxed_epochs: int) -> None:
    """Of images that two bits make, by either estimator; bits again afterwards."""
    options = program.parse([])
    vars(options).update(latent=LATENT, hidden=HIDDEN, encoder=[6], decoder=[4])
    vars(options).update(
        epochs=25,
        relaxed_epochs=relaxed_epochs,
        decay_from=12,
        warmup=5,
        batch_size=20,
        chains=20,
        every=100,
    )
    vars(options).update(learning_rate=0.05, prior_learning_rate=0.05, progress=False)
    generator = torch.Generator().manual_seed(0)
    coins = torch.randint(2, (200, 2), generator=generator).float()
    images = coins[:, [0, 0, 0, 1, 1]].double()
    vae = program.build(prior, images, options).double()
    before = Enumerated(vae, images).log_evidence.mean()
    module = importlib.import_module("vae_training")
    history = module.Training(vae, images, options).run(lambda _: {"elbo": 0.0})
    after = Enumerated(vae, images).log_evidence.mean()
    # The truth, two fair coins, has -1.386; independent pixels have -3.466.
    assert before < -3.4 and after > -3.0
    assert vae.temperature is None and [record["epoch"] for record in history] == [25]


def test_rates_and_the_change_of_estimators(program: Any) -> None:
    """The prior has a rate of its own; chains and their prior go on when relaxed bits become bits."""
    options = program.parse([])
    vars(options).update(latent=LATENT, hidden=HIDDEN, encoder=[6], decoder=[4], epochs=2)
    vars(options).update(relaxed_epochs=1, batch_size=10, chains=7, prior_learning_rate=0.0)
    images = torch.rand(30, PIXELS)
    vae = program.build("rbm", images, options)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    training = importlib.import_module("vae_training").Training(vae, images, options)
    training.start(relaxed=True)
    first = training.loss
    training.run()
    for name, parameter in vae.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("prior"), name
    chains = training.loss.chains["z"]
    assert training.loss is not first and chains.shape == (7, LATENT)
    assert set(chains.unique().tolist()) <= {0.0, 1.0}
    training.start(relaxed=False)
    assert torch.equal(training.loss.chains["z"], chains)


def test_the_twin_may_have_rates_of_its_own(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Recorder:
        def __init__(self, vae: Any, images: Tensor, options: Any) -> None:
            name = "independent" if "prior.bias" in dict(vae.named_parameters()) else "rbm"
            seen[name] = (options.learning_rate, options.prior_learning_rate)

        def run(self, evaluate: Any) -> list[Any]:
            return []

    monkeypatch.setattr(program, "Training", Recorder)
    data = datasets.load("digits", validation=237)
    for twin, expected in ((None, (0.02, 0.03)), (0.5, (0.5, 0.5))):
        options = program.parse(["--smoke"])
        options.twin_learning_rate = twin
        for prior in PRIORS:
            program.fit(prior, data, options)
        assert seen == {"rbm": (0.02, 0.03), "independent": expected}


def test_smoke(program: Any, tmp_path: Path) -> None:
    report = program.run(program.parse(["--smoke", "--output", str(tmp_path)]))
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    for prior in PRIORS:
        own = report[prior]["evaluation"]
        # Pixels without any z have about -27.
        assert -30.0 < own["elbo"] < own["bound"]["value"] < -15.0
    found = report["comparison"]
    bounds = [report[prior]["evaluation"]["bound"] for prior in PRIORS]
    assert abs(found["gain"] - (bounds[0]["value"] - bounds[1]["value"])) < 1e-4
    assert found["gain_between_intervals"] == bounds[0]["lower"] - bounds[1]["upper"]
    few, many = (found["gain_by_particles"][count] for count in ("10", "50"))
    assert all(few[prior] < many[prior] for prior in PRIORS)
    assert abs(many["gain"] - (many["rbm"] - many["independent"])) < 1e-4
    for picture in ("learning", "samples", "reconstructions", "dependence"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    again = program.run(program.parse(["--smoke", "--load", str(tmp_path), "--priors", "rbm"]))
    assert again["rbm"]["evaluation"]["bound"] == report["rbm"]["evaluation"]["bound"]
    for name in ("history", "cpu_seconds"):
        assert again["rbm"][name] == report["rbm"][name]
    assert again["loaded"] == {"folder": str(tmp_path), "command": report["command"]}


def test_a_loaded_run_brings_its_settings(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"latent": 7, "epochs": 3, "seed": 5, "data": "digits", "importance": 9}
    (tmp_path / "report.json").write_text(json.dumps({"settings": settings}))
    options = program.parse(["--load", str(tmp_path), "--rows", "4"])
    assert (options.latent, options.epochs, options.seed, options.data) == (7, 3, 5, "digits")
    # What belongs to the evaluation is that of this run.
    assert (options.importance, options.rows) == (500, 4)
    for further, message in (
        # The default, and different in the run.
        (["--latent", "128", "--seed=1"], "from the run, got --seed, --latent as well"),
        (["--output", str(tmp_path / "..") + f"/{tmp_path.name}"], "must not be the folder"),
    ):
        with pytest.raises(SystemExit):
            program.parse(["--load", str(tmp_path), *further])
        assert message in capsys.readouterr().err


def test_annealing_starts_from_the_rates_of_codes(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = importlib.import_module("vae_evaluation")
    vae, images = toy(program, "rbm")
    seen = {}
    monkeypatch.setattr(
        evaluation, "bracket_log_partition", lambda machine, **options: seen.update(options)
    )
    evaluation.log_partition(vae, images, 11, 12, exact_units=0)
    torch.testing.assert_close(seen["base"], torch.sigmoid(vae.encoder(images)).mean(0))
    assert (seen["num_chains"], seen["num_temperatures"]) == (11, 12)
