# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics by name: their values against brute force, what they need, and that they change no run."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.diagnostics import convergence_of
from pyro_ebm.distances import maximum_mean_discrepancy
from pyro_ebm.infer import estimate_log_partition, pseudo_log_likelihood
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.metrics import METRICS, RBMSnapshot, StepWatch, keys_of, known_keys
from pyro_ebm.training.metrics.chains import chain_mixing
from pyro_ebm.training.metrics.likelihood import sampled_pseudo_log_likelihood
from tests import brute_force
from tests.training.machines import (
    assert_same_state,
    make_module,
    random_module,
    some_bits,
    to_machine,
)

DATA = some_bits(110)
VALIDATION = some_bits(30, seed=1)
#: Metrics that every machine of bits has.
OF_BITS = tuple(
    name for name, metric in METRICS.items() if metric.shallow and name != "classification_error"
)
FAST_AIS = {"ais_log_likelihood": {"every": 1, "num_chains": 20, "num_temperatures": 50}}


def run(
    module: nn.RBM | None = None,
    data: Tensor = DATA,
    validation: Tensor | None = VALIDATION,
    **options,
) -> Trainer:
    defaults = {"num_epochs": 2, "batch_size": 10, "seed": 3, "progress": False}
    module = nn.RBM(6, 4, seed=0, centered=True) if module is None else module
    trainer = Trainer(module, TrainerConfig(**{**defaults, **options}))
    trainer.fit(data, validation)
    return trainer


def watched(pair=("bernoulli", "bernoulli"), **options) -> tuple[Trainer, dict]:
    """One epoch of a random machine in float64, and its record."""
    module = random_module(pair, centered=True)
    with torch.no_grad():
        data = module().sample((50,), generator=torch.Generator().manual_seed(2))
    options = {"num_epochs": 1, "persistent": True, "learning_rate": 1e-3, **options}
    trainer = run(module, data[:30], data[30:], **options)
    return trainer, trainer.history[-1]


def brute_likelihood(module: nn.RBM, rows: Tensor) -> tuple[np.ndarray, float]:
    """Log-likelihoods of rows and log Z, from the energy state by state."""
    machine = to_machine(module)
    states, weights = brute_force.points(machine.visible)
    log_z = brute_force.log_sum(-brute_force.free_energy(machine, states), weights).real
    return -brute_force.free_energy(machine, rows.numpy()).real - log_z, float(log_z)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("bernoulli", "bernoulli"), ("categorical", "ising")])
def test_likelihoods_are_those_of_brute_force(pair):
    names = ("exact_log_likelihood", "pseudo_log_likelihood")
    trainer, record = watched(pair, metrics=names)
    assert record.keys() - {"epoch", "seconds"} == set(keys_of(names))
    machine = to_machine(trainer.module)
    states, _ = brute_force.points(machine.visible)
    unit = 3 if pair[0] == "categorical" else 1
    for split, rows in trainer.metric_rows.items():
        values, log_z = brute_likelihood(trainer.module, rows)
        assert record[f"exact_log_likelihood_{split}"] == pytest.approx(values.mean(), abs=1e-9)
        assert record["exact_log_partition"] == pytest.approx(log_z, abs=1e-9)
        log_p = -brute_force.free_energy(machine, states).real
        total = 0.0
        for v in rows.numpy():
            here = log_p[(states == v).all(1)][0]
            for i in range(0, len(v), unit):
                others = np.delete(np.arange(len(v)), np.arange(i, i + unit))
                alike = (states[:, others] == v[others]).all(1)
                total += here - np.log(np.exp(log_p[alike]).sum())
        pseudo = record[f"pseudo_log_likelihood_{split}"]
        assert pseudo == pytest.approx(total / len(rows), abs=1e-9)


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("ising", "gaussian")])
@torch.no_grad()
def test_pseudo_likelihood_of_some_units(pair):
    """All subsets of one unit have the exact value as their mean; all units give it at once."""
    dist = random_module(pair, centered=True)()
    rows = dist.sample((4,))
    exact = pseudo_log_likelihood(dist, rows)
    generator = torch.Generator().manual_seed(0)
    every = sampled_pseudo_log_likelihood(dist, rows, 3, generator)
    torch.testing.assert_close(every, exact, rtol=0, atol=1e-12)
    single = torch.stack(
        [sampled_pseudo_log_likelihood(dist, rows, 1, generator) for _ in range(100)]
    )
    for n in range(len(rows)):
        # Three values, one a unit, whose mean is the exact one.
        values = torch.unique((single[:, n] * 1e9).round()) / 1e9
        assert len(values) == 3
        assert values.mean().item() == pytest.approx(exact[n].item(), abs=1e-8)


def test_pseudo_likelihood_of_some_units_in_a_run():
    name = "pseudo_log_likelihood"
    options = {"metrics": [name], "num_epochs": 1, "metrics_rows": 2000, "batch_size": 500}
    options["learning_rate"] = 1.0
    rows = some_bits(2000)
    keys = [f"{name}_train", f"{name}_validation"]
    exact = run(data=rows, **options).history[-1]
    sampled = run(data=rows, **options, metrics_options={name: {"num_units": 2}}).history[-1]
    assert set(keys) < exact.keys() and set(keys) < sampled.keys()
    # Estimates of a row are 0.82 nats around the exact value, their mean 0.018. Units that are drawn with the
    # seed of the rows' own bits would put it 0.17 away.
    assert sampled[keys[0]] == pytest.approx(exact[keys[0]], abs=6 * 0.018)
    assert sampled[keys[0]] != exact[keys[0]]


def test_the_gap_and_its_error():
    trainer, record = watched(metrics=["free_energy_gap", "free_energy"])
    machine = to_machine(trainer.module)
    train, held_out = (
        brute_force.free_energy(machine, trainer.metric_rows[split].numpy()).real
        for split in ("train", "validation")
    )
    error = math.sqrt(train.var(ddof=1) / 30 + held_out.var(ddof=1) / 20)
    assert record["free_energy_gap"] == pytest.approx(held_out.mean() - train.mean(), abs=1e-9)
    assert record["free_energy_gap_std_error"] == pytest.approx(error, abs=1e-9)
    chains = brute_force.free_energy(machine, trainer.chains.numpy()).real.mean()
    assert record["free_energy_chains"] == pytest.approx(chains, abs=1e-9)


def test_reconstruction_is_the_same_of_both_splits():
    """Validation rows that are the training rows have the same error."""
    record = run(validation=DATA, metrics=["reconstruction_error"]).history[-1]
    assert record["reconstruction_error"] == record["reconstruction_error_validation"]
    assert record["reconstruction_error"] == run(num_epochs=2).history[-1]["reconstruction_error"]


def test_hidden_units():
    """Unit 0 is never on, unit 1 always, unit 2 half of the time."""
    module = nn.RBM(6, 3, dtype=torch.float64)
    with torch.no_grad():
        module.weight.zero_()
        module.hidden.bias.copy_(torch.tensor([-6.0, 6.0, 0.0]))
    options = {"metrics": ["hidden_units"], "learning_rate": 1e-12, "num_epochs": 1}
    record = run(module, **options).history[-1]
    assert record["dead_units"] == record["saturated_units"] == pytest.approx(1 / 3)
    assert record["mean_activation"] == pytest.approx(0.5, abs=1e-9)
    # sigmoid(-6) = 0.0025.
    options["metrics_options"] = {"hidden_units": {"threshold": 0.002}}
    record = run(module, **options).history[-1]
    assert record["dead_units"] == record["saturated_units"] == 0.0


def test_hidden_spins_are_on_at_a_rate():
    trainer, record = watched(("bernoulli", "ising"), metrics=["hidden_units", "penalties"])
    machine = to_machine(trainer.module)
    mean = brute_force.hidden_mean(machine, trainer.metric_rows["train"].numpy()).mean(0)
    assert record["mean_activation"] == pytest.approx(mean.mean(), abs=1e-9)
    assert record["dead_units"] == ((1 + mean) / 2 < 0.01).mean()


def test_hidden_units_of_real_numbers_are_not_dead():
    _, record = watched(("bernoulli", "gaussian"), metrics=["hidden_units", "penalties"])
    assert "mean_activation" in record and "dead_units" not in record
    assert "penalty_sparsity" not in record


def test_norms_and_penalties():
    costs = {"l1": [0.5, 0.25], "weight_decay": 0.1, "sparsity_cost": 0.3, "sparsity_target": 0.2}
    names = ["weight_norm", "largest_column_norm", "penalties"]
    trainer, record = watched(metrics=names, num_epochs=2, **costs)
    weight = trainer.module.weight.detach().numpy()
    mean = brute_force.hidden_mean(
        to_machine(trainer.module), trainer.metric_rows["train"].numpy()
    ).mean(0)
    divergence = 0.2 * np.log(0.2 / mean) + 0.8 * np.log(0.8 / (1 - mean))
    expected = {
        "weight_norm": np.sqrt((weight**2).sum()),
        "largest_column_norm": np.sqrt((weight**2).sum(0).max()),
        # The cost of the second epoch.
        "penalty_l1": 0.25 * np.abs(weight).sum(),
        "penalty_l2": 0.05 * (weight**2).sum(),
        "penalty_sparsity": 0.3 * divergence.sum(),
    }
    assert {name: record[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_gradient_and_update():
    """A step of plain SGD on one batch: the update is the learning rate times the gradient."""
    module = random_module(("bernoulli", "bernoulli"))
    before = module.weight.detach().clone()
    data = some_bits(20, 3)
    names = ["gradient_norm", "update_ratio"]
    options = {"num_epochs": 1, "batch_size": 20, "learning_rate": 0.5, "metrics": names}
    record = run(module, data, None, **options).history[-1]
    gradients = [p.grad for p in module.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-12)
    ratio = 0.5 * module.weight.grad.norm() / before.norm()
    assert record["update_ratio"] == pytest.approx(ratio.item(), rel=1e-12)


def test_the_gradient_is_the_one_before_clipping():
    options = {"metrics": ["gradient_norm"], "num_epochs": 1, "batch_size": 110}
    plain = run(**options).history[-1]["gradient_norm"]
    clipped = run(gradient_clip=1e-3, **options).history[-1]["gradient_norm"]
    assert clipped == plain > 1e-3


def test_mmd_has_the_bandwidth_of_the_data():
    trainer, record = watched(metrics=["mmd"])
    rows = trainer.metric_rows["train"]
    distances = [float((a - b).norm()) for a, b in itertools.combinations(rows, 2)]
    bandwidth = torch.tensor(distances).double().median().item()
    expected = maximum_mean_discrepancy(trainer.chains, rows, bandwidth=bandwidth)
    assert record["mmd"] == pytest.approx(expected.value, rel=1e-6)
    options = {"mmd": {"kernel": "hamming", "bandwidth": 2.0}}
    trainer, record = watched(metrics=["mmd"], metrics_options=options)
    rows = trainer.metric_rows["train"]
    expected = maximum_mean_discrepancy(trainer.chains, rows, kernel="hamming", bandwidth=2.0)
    assert record["mmd"] == expected.value


def test_ais_is_that_of_the_rows_means():
    options = {"metrics": ["ais_log_likelihood"], "metrics_options": FAST_AIS}
    trainer, record = watched(**options)
    rows = trainer.metric_rows
    with torch.no_grad():
        dist = trainer.module()
    estimate = estimate_log_partition(
        dist, num_chains=20, num_temperatures=50, base=rows["train"].mean(0), seed=0
    )
    assert record["ais_log_partition"] == estimate.value.item()
    assert record["ais_log_likelihood_std_error"] == estimate.std_error.item() > 0
    assert record["ais_log_likelihood_side"] == "above"
    assert record["ais_ess"] == estimate.ess.item()
    for split in rows:
        values, log_z = brute_likelihood(trainer.module, rows[split])
        error = record[f"ais_log_likelihood_{split}"] - values.mean()
        assert error == pytest.approx(log_z - estimate.value.item(), abs=1e-9)
        assert abs(error) < 6 * estimate.std_error.item()


def test_chain_mixing():
    """Energies that share a drift: only what tells chains apart counts."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(8, 50, generator=generator, dtype=torch.float64)
    drift = torch.linspace(0, 100, 50, dtype=torch.float64)
    watch = StepWatch(nn.RBM(2, 2), 50, window=50)

    def mixing(energies: Tensor) -> dict:
        watch._energies = list(energies.T)
        return chain_mixing(RBMSnapshot({}, None, watch, module=nn.RBM(2, 2)), 50)

    found = mixing(steps + drift)
    direct = convergence_of((steps - steps.mean(0)).numpy())
    assert found == pytest.approx({"chain_r_hat": direct.r_hat, "chain_ess": direct.ess_bulk})
    assert found["chain_r_hat"] < 1.1 and found["chain_ess"] > 200
    stuck = mixing(steps + 5 * torch.arange(8.0).unsqueeze(1))
    assert stuck["chain_r_hat"] > 1.5 and stuck["chain_ess"] < 20


def test_the_window_of_chains():
    """Free energies of the last updates of the epoch, under the machine of each."""
    seen = []
    original = StepWatch.after_update

    def recording(self, number, chains):
        original(self, number, chains)
        seen.append((number, self._energies[-1] if self._energies else None, chains))

    options = {"metrics": ["chain_mixing"], "persistent": True, "num_epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepWatch, "after_update", recording)
        trainer = run(metrics_options={"chain_mixing": {"window": 8}}, **options)
    record = trainer.history[-1]
    assert [number for number, *_ in seen] == list(range(11))
    assert seen[2][1] is None and seen[3][1] is not None
    with torch.no_grad():
        assert torch.equal(seen[-1][1], trainer.module().free_energy(trainer.chains))
    draws = torch.stack([energies for _, energies, _ in seen[3:]], 1).double()
    direct = convergence_of((draws - draws.mean(0)).numpy())
    assert record["chain_r_hat"] == direct.r_hat and record["chain_ess"] == direct.ess_bulk


def test_too_few_updates_have_no_r_hat():
    options = {"metrics": ["chain_mixing"], "persistent": True, "batch_size": 20}
    record = run(**options).history[-1]
    assert math.isnan(record["chain_r_hat"]) and math.isnan(record["chain_ess"])


def test_an_objective_without_chains():
    """Persistent chains were asked for, but p(y | x) is exact."""
    module = nn.ClassificationRBM(4, 5, 3, seed=0)
    options = {"persistent": True, "objective": "discriminative", "num_epochs": 1}
    rows = module.join(some_bits(40, 4), torch.arange(40) % 3)
    record = run(module, rows, None, metrics=["mmd", "chain_mixing", "free_energy"], **options)
    assert math.isnan(record.history[-1]["mmd"])


def test_numbers_that_are_none_survive_a_checkpoint(tmp_path):
    options = {"metrics": ["chain_mixing"], "persistent": True, "batch_size": 50}
    trainer = run(checkpoint=tmp_path / "last.safetensors", **options)
    again = Trainer.from_checkpoint(tmp_path / "last.safetensors", num_epochs=3)
    again.fit(DATA, VALIDATION)
    assert [math.isnan(record["chain_r_hat"]) for record in again.history] == [True] * 3
    assert len(trainer.history) == 2


def test_classification_error():
    module = nn.ClassificationRBM(4, 5, 3, seed=0, dtype=torch.float64)
    x = some_bits(40, 4).double()
    labels = torch.arange(40) % 3
    labels[::5] = -1
    config = TrainerConfig(
        num_epochs=1,
        batch_size=10,
        seed=0,
        progress=False,
        metrics=["classification_error", "free_energy"],
        objective="discriminative",
    )
    (record,) = Trainer(module, config).fit(module.join(x, labels), module.join(x, labels % 1))
    known = labels >= 0
    with torch.no_grad():
        wrong = (module.predict(x)[known] != labels[known]).double().mean().item()
        others = (module.predict(x) != 0).double().mean().item()
    assert record["classification_error_train"] == wrong
    assert record["classification_error_validation"] == others


# --- when, and for what ---------------------------------------------------------------------------


def test_without_a_choice_nothing_is_new():
    """The history of a run that names no metrics is what it was before there were names."""
    record = run(persistent=True).history[-1]
    assert list(record) == [
        "epoch",
        "reconstruction_error",
        "free_energy_train",
        "weight_norm",
        "free_energy_validation",
        "free_energy_gap",
        "free_energy_chains",
        "seconds",
    ]


def test_keys_are_as_announced():
    """Every metric writes the keys of the table and no others, in JSON types."""
    record = run(metrics=OF_BITS, persistent=True, metrics_options=FAST_AIS).history[-1]
    assert record.keys() - {"epoch", "seconds"} == set(keys_of(OF_BITS))
    assert json.loads(json.dumps(record)) == record
    keys = [key for metric in METRICS.values() for key in metric.keys]
    assert len(set(keys)) == len(keys) and set(keys) == known_keys()
    for name, metric in METRICS.items():
        assert metric.function.__doc__, name


def test_epochs_between_metrics():
    options = {"hidden_units": {"every": 3}}
    names = ["weight_norm", "hidden_units"]
    trainer = run(num_epochs=7, metrics=names, metrics_every=2, metrics_options=options)
    kept = [sorted(record.keys() - {"epoch", "seconds"}) for record in trainer.history]
    both = ["dead_units", "mean_activation", "saturated_units", "weight_norm"]
    assert kept == [[], ["weight_norm"], [], ["weight_norm"], [], both, []]
    plain = run(num_epochs=3, metrics_every=2).history
    assert [len(record) > 2 for record in plain] == [False, True, False]


@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
def test_metrics_change_nothing(binarize):
    """A run with every metric ends in the same bits as one with few, and leaves the global generator."""
    options = {"persistent": True, "binarize": binarize, "num_chains": 15, "averaging": 0.5}
    plain = run(validation=None, metrics=["weight_norm"], **options)
    state = torch.get_rng_state()
    all_of_them = run(metrics=OF_BITS, metrics_options=FAST_AIS, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(plain.module, all_of_them.module)
    assert_same_state(plain.averaged, all_of_them.averaged)
    assert torch.equal(plain.chains, all_of_them.chains)
    assert torch.equal(plain._generator.get_state(), all_of_them._generator.get_state())
    assert [r["weight_norm"] for r in plain.history] == [
        r["weight_norm"] for r in all_of_them.history
    ]


def test_a_partial_fit_has_what_there_is():
    names = ["free_energy", "free_energy_gap", "gradient_norm"]
    trainer = Trainer(nn.RBM(6, 4, seed=0), TrainerConfig(metrics=names, seed=0))
    record = trainer.partial_fit(DATA)
    assert record.keys() == {"epoch", "free_energy_train", "gradient_norm", "seconds"}


def test_the_progress_line_shows_what_was_chosen(capfd):
    options = {"metrics": ["mmd", "hidden_units"], "persistent": True, "monitor": "mmd"}
    record = run(progress=True, **options).history[-1]
    _, err = capfd.readouterr()
    assert f"mmd={record['mmd']:.4g}" in err
    assert f"dead_units={record['dead_units']:.4g}" in err
    assert "reconstruction" not in err


# --- refusals ---------------------------------------------------------------------------------------


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"metrics must be .*'weight_norm'.* got \('pll',\)"):
        TrainerConfig(metrics=("pll",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["mmd"]}, "metrics has 'mmd', which needs persistent=True"),
        ({"metrics": ["chain_mixing"]}, "'chain_mixing', which needs persistent=True"),
        ({"metrics_options": {"mmd": {}}}, "options of 'mmd', which is not in metrics"),
        (
            {"metrics": ["weight_norm"], "metrics_options": {"weight_norm": {"norm": 2}}},
            r"of 'weight_norm' has unknown \['norm'\]; it has \['every'\]",
        ),
        (
            {"metrics": ["hidden_units"], "metrics_options": {"hidden_units": {"threshold": 0.5}}},
            r"threshold of metrics_options of 'hidden_units' must be a number in \(0, 0.5\), got",
        ),
        (
            {
                "metrics": ["ais_log_likelihood"],
                "metrics_options": {"ais_log_likelihood": {"num_chains": 1}},
            },
            "num_chains of metrics_options of 'ais_log_likelihood' must be",
        ),
    ],
    ids=str,
)
def test_impossible_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


@pytest.mark.parametrize("name", METRICS)
def test_every_option_is_checked(name):
    """None of them takes a word."""
    for option in [*METRICS[name].options, "every"]:
        for value in ("x", True, float("nan")):
            with pytest.raises(
                ValueError, match=f"{option} of metrics_options of '{name}' must be"
            ):
                TrainerConfig(
                    metrics=[name], persistent=True, metrics_options={name: {option: value}}
                )


def test_metrics_that_a_module_cannot_have():
    def refuse(module, message, **options):
        with pytest.raises(ValueError, match=message):
            Trainer(module, TrainerConfig(**options))

    big = nn.RBM(30, 30)
    name = "exact_log_likelihood"
    refuse(big, f"'{name}', which the module .*: the smaller layer has .* states", metrics=[name])
    refuse(
        nn.RBM(3, 3),
        "more than max_states=4",
        metrics=[name],
        metrics_options={name: {"max_states": 4}},
    )
    name = "pseudo_log_likelihood"
    gaussian = make_module(("gaussian", "bernoulli"))
    refuse(gaussian, f"'{name}', which .*: Gaussian units have no finite set", metrics=[name])
    few = {name: {"num_units": 2}}
    groups = make_module(("categorical", "bernoulli"))
    refuse(groups, "num_units is for visible bits", metrics=[name], metrics_options=few)
    refuse(nn.RBM(3, 3), "needs a nn.ClassificationRBM", metrics=["classification_error"])
    options = {"metrics": ["mmd"], "persistent": True, "num_chains": 1}
    refuse(nn.RBM(3, 3), "'mmd', which needs at least 2 chains, got 1", **options)
    nbm = nn.NeuralBoltzmannMachine(2, 3, 2)
    refuse(nbm, "'hidden_units'; those of conditional models are", metrics=["hidden_units"])


def test_rows_that_metrics_cannot_be_computed_of():
    with pytest.raises(ValueError, match="'free_energy_gap', which needs validation rows"):
        run(validation=None, metrics=["free_energy_gap"])
    module = nn.ClassificationRBM(4, 2, 3, seed=0)
    rows = module.join(some_bits(20, 4), torch.tensor([-1] * 5 + [0] * 15))
    config = TrainerConfig(metrics=["pseudo_log_likelihood"], progress=False, num_epochs=1)
    trainer = Trainer(module, config)
    with pytest.raises(ValueError, match="needs states of the visible layer; 5 of 20 train rows"):
        trainer.fit(rows)
    assert trainer.epoch == 0


# --- conditional models -----------------------------------------------------------------------------


def test_metrics_of_a_conditional_model():
    def fit(**options) -> Trainer:
        nbm = nn.NeuralBoltzmannMachine(1, 3, 2, visible="bernoulli", seed=0)
        config = TrainerConfig(num_epochs=2, batch_size=10, seed=1, progress=False, **options)
        trainer = Trainer(nbm, config)
        x = (torch.arange(40) % 3.0).unsqueeze(1)
        rows = some_bits(40, 3)
        trainer.fit(rows, rows, context=x, validation_context=x)
        return trainer

    names = tuple(name for name, metric in METRICS.items() if metric.conditional)
    plain, all_of_them = fit(), fit(metrics=names)
    for a, b in zip(plain.module.parameters(), all_of_them.module.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = plain.history[-1], all_of_them.history[-1]
    assert {k: second[k] for k in first if k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }
    assert second["reconstruction_error_validation"] == second["reconstruction_error"]
    assert second["free_energy_gap"] == 0.0 < second["free_energy_gap_std_error"]
    norm = math.sqrt(
        sum(
            float(p.grad.square().sum()) for p in all_of_them.module.parameters() if p.requires_grad
        )
    )
    assert second["gradient_norm"] == pytest.approx(norm, rel=1e-5)
