# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of deep machines: their values against enumeration and their definitions, and what is refused."""

import json
import math

import pytest
import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.diagnostics import convergence_of
from pyro_ebm.distances import maximum_mean_discrepancy
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.metrics import METRICS, base_key, keys_of
from tests.training.deep import all_states, log_weights, random_deep

OF_DEEP = tuple(name for name, metric in METRICS.items() if metric.deep)
FAST_AIS = {"ais_log_likelihood": {"every": 1, "num_chains": 50, "num_temperatures": 100}}


def watched(name: str = "2", centered: bool = True, **options) -> tuple[Trainer, dict]:
    """One epoch of a random machine in float64, and its record."""
    module = random_deep(name, centered=centered)
    with torch.no_grad():
        rows = module().sample((50,), generator=Generator().manual_seed(2))
    defaults = {"num_epochs": 1, "batch_size": 3, "persistent": True, "learning_rate": 1e-3}
    defaults |= {"seed": 3, "progress": False}
    trainer = Trainer(module, TrainerConfig(**{**defaults, **options}))
    trainer.fit(rows[:30], rows[30:])
    return trainer, trainer.history[-1]


def tight_field(trainer: Trainer, rows: Tensor):
    dist = trainer.module(validate_args=False).detach()
    return dist.mean_field(rows, max_updates=2000, tolerance=1e-12)


@torch.no_grad()
def exact_log_densities(module: nn.DBM, rows: Tensor) -> tuple[Tensor, float]:
    """log p*(v) of rows and log Z, from the energy state by state."""
    dist = module()
    states = all_states(dist)
    weights = log_weights(dist, states)
    values = [weights[(states[0] == row).all(-1)].logsumexp(0) for row in rows]
    return torch.stack(values), weights.logsumexp(0).item()


@pytest.mark.parametrize("name", ["1", "2", "2-mixed", "3", "4"])
def test_exact_likelihoods_are_those_of_enumeration(name):
    names = ("exact_log_likelihood", "elbo")
    trainer, record = watched(name, metrics=names)
    for split, rows in trainer.metric_rows.items():
        values, log_z = exact_log_densities(trainer.module, rows)
        expected = values.mean().item() - log_z
        assert record[f"exact_log_likelihood_{split}"] == pytest.approx(expected, abs=1e-9)
        assert record["exact_log_partition"] == pytest.approx(log_z, abs=1e-9)
        gap = values.mean().item() - record[f"elbo_{split}"]
        assert gap == pytest.approx(0.0, abs=1e-9) if name == "1" else 0 < gap < 1
        bound = tight_field(trainer, rows).bound
        # The metric's mean field stops at a tolerance of 1e-3, and the bound is stationary in it.
        assert record[f"elbo_{split}"] == pytest.approx(bound.mean().item(), abs=1e-4)
    error = bound.std().item() / math.sqrt(len(rows))
    assert record["elbo_std_error"] == pytest.approx(error, rel=1e-3)


def test_ais_stands_between_the_bound_and_the_exact_value():
    names = ["ais_log_likelihood", "exact_log_likelihood", "elbo"]
    trainer, record = watched("3", metrics=names, metrics_options=FAST_AIS)
    error = record["ais_log_partition"] - record["exact_log_partition"]
    assert abs(error) < 6 * record["ais_log_likelihood_std_error"]
    for split in trainer.metric_rows:
        expected = record[f"elbo_{split}"] - record["ais_log_partition"]
        assert record[f"ais_log_likelihood_{split}"] == pytest.approx(expected, abs=1e-9)
    # Below by the gap of the bound, above by that of log Z.
    assert record["ais_log_likelihood_side"] is None
    _, shallow = watched("1", metrics=names, metrics_options=FAST_AIS)
    assert shallow["ais_log_likelihood_side"] == "above"


def test_reconstruction_and_free_energies():
    names = ["reconstruction_error", "free_energy", "free_energy_gap"]
    trainer, record = watched("3", metrics=names)
    dist = trainer.module().detach()
    bounds = {}
    for split, rows in trainer.metric_rows.items():
        found = tight_field(trainer, rows)
        bounds[split] = -found.bound
        back = dist.layer_given(0, [found.means[0]]).mean
        key = "reconstruction_error" + "_validation" * (split == "validation")
        assert record[key] == pytest.approx((rows - back).square().mean().item(), abs=1e-3)
        assert record[f"free_energy_{split}"] == pytest.approx(
            bounds[split].mean().item(), abs=1e-4
        )
    chains = tight_field(trainer, trainer.chains[:, :3]).bound
    assert record["free_energy_chains"] == pytest.approx(-chains.mean().item(), abs=1e-4)
    gap = bounds["validation"].mean() - bounds["train"].mean()
    assert record["free_energy_gap"] == pytest.approx(gap.item(), abs=2e-4)


def test_hidden_units_by_layer():
    """Layer 1: never on, always, half of the time. Layer 2: spins, never and half. Layer 3: real numbers."""
    module = nn.DBM(4, [3, 2, 2], hidden=["bernoulli", "ising", "gaussian"], dtype=torch.float64)
    with torch.no_grad():
        for weight in module.weights:
            weight.zero_()
        module.layers[1].bias.copy_(torch.tensor([-6.0, 6.0, 0.0]))
        module.layers[2].bias.copy_(torch.tensor([-4.0, 0.0]))
        module.layers[3].loc.copy_(torch.tensor([2.0, 4.0]))
    config = {"num_epochs": 1, "learning_rate": 1e-12, "progress": False, "seed": 0}
    trainer = Trainer(module, TrainerConfig(metrics=["hidden_units"], **config))
    (record,) = trainer.fit(torch.bernoulli(torch.full((20, 4), 0.5)))
    found = {key: value for key, value in record.items() if key not in ("epoch", "seconds")}
    spin = math.tanh(-4.0)
    expected = {
        "mean_activation": (1.5 + spin + 6.0) / 7,
        "mean_activation_h1": 0.5,
        "mean_activation_h2": spin / 2,
        "mean_activation_h3": 3.0,
        "dead_units": 2 / 5,
        "dead_units_h1": 1 / 3,
        "dead_units_h2": 1 / 2,
        "saturated_units": 1 / 5,
        "saturated_units_h1": 1 / 3,
        "saturated_units_h2": 0.0,
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_norms_and_penalties_by_layer():
    layers = [{"sparsity_cost": 0.3, "sparsity_target": 0.2}, {}, {"sparsity_cost": 0.5}]
    costs = {"l1": 0.25, "weight_decay": 0.1, "layers": layers}
    names = ["weight_norm", "largest_column_norm", "penalties"]
    trainer, record = watched("3", metrics=names, **costs)
    weights = [weight.detach() for weight in trainer.module.weights]
    means = [m.mean(0) for m in tight_field(trainer, trainer.metric_rows["train"]).means]

    def divergence(q: Tensor, t: float) -> float:
        return float((t * (t / q).log() + (1 - t) * ((1 - t) / (1 - q)).log()).sum())

    expected = {
        "weight_norm": math.sqrt(sum(float(w.square().sum()) for w in weights)),
        "largest_column_norm": max(float(w.norm(dim=0).max()) for w in weights),
        "penalty_l1": 0.25 * sum(float(w.abs().sum()) for w in weights),
        "penalty_l2": 0.05 * sum(float(w.square().sum()) for w in weights),
    }
    for layer, weight in enumerate(weights, start=1):
        expected[f"weight_norm_h{layer}"] = float(weight.norm())
        expected[f"largest_column_norm_h{layer}"] = float(weight.norm(dim=0).max())
    assert {key: record[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    # The second hidden layer has one-hot groups: no such penalty.
    sparse = 0.3 * divergence(means[0], 0.2) + 0.5 * divergence((1 + means[2]) / 2, 0.1)
    assert record["penalty_sparsity"] == pytest.approx(sparse, abs=1e-3)


def test_gradient_and_update_by_layer():
    """A step of plain SGD on one batch: the update is the learning rate times the gradient."""
    names = ["gradient_norm", "update_ratio"]
    before = [weight.detach().clone() for weight in random_deep("2").weights]
    options = {"batch_size": 30, "learning_rate": 0.5, "metrics": names, "centered": False}
    trainer, record = watched("2", **options)
    total = sum(float(p.grad.square().sum()) for p in trainer.module.parameters())
    assert record["gradient_norm"] == pytest.approx(math.sqrt(total), rel=1e-12)
    norms = [weight.grad.norm().item() for weight in trainer.module.weights]
    for layer, (norm, old) in enumerate(zip(norms, before, strict=True), start=1):
        assert record[f"gradient_norm_h{layer}"] == pytest.approx(norm, rel=1e-12)
        ratio = 0.5 * norm / old.norm().item()
        assert record[f"update_ratio_h{layer}"] == pytest.approx(ratio, rel=1e-9)
    ratio = 0.5 * math.hypot(*norms) / math.hypot(*(w.norm().item() for w in before))
    assert record["update_ratio"] == pytest.approx(ratio, rel=1e-9)


def test_chains():
    """Free energies of the even layers are exact; distances are those of the visible states."""
    options = {"mmd": {"bandwidth": 1.0}, "chain_mixing": {"window": 10}}
    seen = []
    original = Trainer._record

    def recording(self, train, held_out, watch):
        seen.append(watch)
        return original(self, train, held_out, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_record", recording)
        trainer, record = watched("3", metrics=["chain_mixing", "mmd"], metrics_options=options)
    energies = seen[0].chain_energies
    machine = trainer.module().detach().bipartite()
    torch.testing.assert_close(energies[:, -1], machine.free_energy(trainer.chains))
    draws = energies - energies.mean(0)
    direct = convergence_of(draws.numpy())
    assert record["chain_r_hat"] == direct.r_hat and record["chain_ess"] == direct.ess_bulk
    rows = trainer.metric_rows["train"]
    distance = maximum_mean_discrepancy(trainer.chains[:, :3], rows, bandwidth=1.0)
    assert record["mmd"] == pytest.approx(distance.value, rel=1e-9)


def test_mean_field_updates():
    name = "mean_field_updates"
    few = {"mean_field_updates": 2, "mean_field_tolerance": 0.0}
    _, record = watched("3", metrics=[name], **few)
    assert record[name] == record[f"{name}_max"] == 2 and record["mean_field_converged"] == 0
    many = {"mean_field_updates": 500, "mean_field_tolerance": 1e-6}
    trainer, record = watched("3", metrics=[name], **many)
    rows = trainer.metric_rows["train"]
    dist = trainer.module(validate_args=False).detach()
    found = dist.mean_field(rows, max_updates=500, tolerance=1e-6)
    assert record[name] == found.num_updates.double().mean().item() > 2
    assert record[f"{name}_max"] == found.num_updates.max().item()
    assert record["mean_field_converged"] == 1


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1", "3"])
def test_keys_are_as_announced(name):
    """Every metric writes the keys of the table, and by layer no others than theirs, in JSON types."""
    _, record = watched(name, metrics=OF_DEEP, metrics_options=FAST_AIS)
    keys = record.keys() - {"epoch", "seconds"}
    assert {base_key(key) for key in keys} == set(keys_of(OF_DEEP))
    assert json.loads(json.dumps(record)) == record


def test_default_record():
    _, record = watched()
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


def test_a_layer_is_monitored():
    options = {"metrics": ["weight_norm"], "monitor": "weight_norm_h2", "monitor_mode": "max"}
    trainer, _ = watched(num_epochs=3, patience=3, **options)
    values = [record["weight_norm_h2"] for record in trainer.history]
    assert trainer.best_epoch == 1 + values.index(max(values))
    with pytest.raises(ValueError, match="monitor='weight_norm_h7': its metric has no such value"):
        watched(metrics=["weight_norm"], monitor="weight_norm_h7")
    with pytest.raises(ValueError, match="monitor='dead_units_h2' needs one of"):
        TrainerConfig(metrics=["weight_norm"], monitor="dead_units_h2")


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pseudo_log_likelihood", "classification_error"])
def test_metrics_of_others_are_refused(name):
    message = rf"metrics has '{name}'; those of deep machines are \['reconstruction_error', "
    with pytest.raises(ValueError, match=message):
        watched(metrics=[name])


@pytest.mark.parametrize("name", ["elbo", "mean_field_updates"])
def test_metrics_of_deep_machines(name):
    with pytest.raises(ValueError, match=f"metrics has '{name}'; those of RBMs are"):
        Trainer(nn.RBM(6, 2), TrainerConfig(metrics=[name]))


def test_machines_that_are_too_large():
    module = nn.DBM(40, [40, 3], seed=0)
    for options in ({}, {"exact_log_likelihood": {"max_states": 100}}):
        config = TrainerConfig(metrics=["exact_log_likelihood"], metrics_options=options)
        with pytest.raises(
            ValueError, match="'exact_log_likelihood', which the module cannot have"
        ):
            Trainer(module, config)
    with pytest.raises(ValueError, match="needs at least 2 chains, got 1"):
        config = TrainerConfig(metrics=["mmd"], persistent=True, num_chains=1)
        Trainer(nn.DBM(4, [3, 2]), config)
    rates = torch.full((20, 4), 0.5)
    config = TrainerConfig(metrics=["exact_log_likelihood"], binarize=True, progress=False)
    with pytest.raises(ValueError, match="data has 20 of 20 rows outside of"):
        Trainer(nn.DBM(4, [3, 2]), TrainerConfig(progress=False)).fit(rates)
    assert len(Trainer(nn.DBM(4, [3, 2]), config).fit(rates)) == 10
