# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Training of conditional models on data with missing entries."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig
from tests.nn.conditional import make_nbm
from tests.training.test_conditional_gradient import (
    assert_unbiased,
    differentiate,
    make_gradient,
    run,
)
from tests.training.test_conditional_training import (
    NUM_EPOCHS,
    assert_same,
    fit_until,
    make_trainer,
    some_data,
    states,
)

#: States of three units, by family.
ALL = {
    "ising": torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double(),
    "bernoulli": torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).double(),
}


def some_mask(rows: int, size: int) -> Tensor:
    mask = torch.rand(rows, size, generator=torch.Generator().manual_seed(8)) < 0.6
    # Rows of which everything or nothing is known.
    mask[0], mask[1] = True, False
    return mask


def consistent(visible: str, y: Tensor, observed: Tensor) -> Tensor:
    """Which states agree with what is observed, shape (states, rows)."""
    return ((ALL[visible].unsqueeze(1) == y) | ~observed).all(-1)


@pytest.mark.parametrize("num_contexts", [3, 40], ids=["repeated", "many"])
@pytest.mark.parametrize("visible", ["ising", "bernoulli"])
def test_the_gradient_is_that_of_what_is_observed(visible, num_contexts):
    """With completions in equilibrium its mean is the gradient of log sum p(y_observed, y_missing)."""
    nbm = make_nbm(visible)
    y, x = some_data(visible, num_contexts, 40)
    observed = some_mask(40, 3)
    machine = nbm.condition(x)
    log_p = machine.normalize(exact_log_partition(machine)).log_prob(ALL[visible].unsqueeze(1))
    log_p = torch.where(consistent(visible, y, observed), log_p, -math.inf)
    expected = differentiate(nbm, -torch.logsumexp(log_p, 0).mean())
    weights = log_p.detach().softmax(0).T

    def draw(seed: int) -> dict[str, Tensor]:
        gradient = make_gradient(nbm, x, seed, negative_phase="exact", num_steps=2)
        generator = torch.Generator().manual_seed(100 + seed)
        choice = torch.multinomial(weights, 1, generator=generator).squeeze(-1)
        gradient.complete_from(ALL[visible][choice], observed)
        gradients = run(gradient, nbm, torch.where(observed, y, torch.nan))
        assert torch.equal(gradient.completed[observed], y[observed])
        return gradients

    assert_unbiased(draw, expected)


def test_a_wrong_completion_is_seen():
    """The test above notices entries that are drawn without a look at the observed ones."""
    nbm = make_nbm("ising")
    with torch.no_grad():
        nbm.weight.linear.weight.mul_(2.0)
    y, x = some_data("ising", 3, 40)
    observed = some_mask(40, 3)
    machine = nbm.condition(x)
    log_p = machine.normalize(exact_log_partition(machine)).log_prob(ALL["ising"].unsqueeze(1))
    log_p = torch.where(consistent("ising", y, observed), log_p, -math.inf)
    expected = differentiate(nbm, -torch.logsumexp(log_p, 0).mean())

    def draw(seed: int) -> dict[str, Tensor]:
        gradient = make_gradient(nbm, x, seed, negative_phase="exact")
        torch.manual_seed(seed)
        return run(gradient, nbm, torch.where(observed, y, machine.detach().sample()))

    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased(draw, expected)


def fit(visible: str, mask: Tensor, garbage: float = math.nan, **options) -> Trainer:
    y, x = some_data(visible)
    if options.get("binarize"):
        y = (y + 1) / 2 * 0.9
    trainer = make_trainer(make_nbm(visible), num_epochs=2, **options)
    torch.manual_seed(int(garbage == 77.0))
    state = torch.get_rng_state()
    trainer.fit(torch.where(mask, y, garbage), context=x, observed=mask)
    assert torch.equal(torch.get_rng_state(), state)
    return trainer


RUNS = {
    "gaussian": {"persistent": True},
    "gaussian-noise": {"noise_std": 0.1},
    "ising": {},
    "ising-rates": {"binarize": True},
}


@pytest.mark.parametrize("name", RUNS)
def test_what_stands_at_missing_entries_is_not_read(name):
    """Nor does the global generator have a part in the run."""
    visible = name.split("-")[0]
    mask = some_mask(110, 2 if visible == "gaussian" else 3)
    first = fit(visible, mask, **RUNS[name])
    second = fit(visible, mask, garbage=77.0, **RUNS[name])
    assert_same(first.module, second.module)
    for ours, theirs in zip(first.history, second.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    other = fit(visible, mask, seed=9, **RUNS[name])
    assert not torch.equal(other.module.weight.linear.weight, first.module.weight.linear.weight)


@pytest.mark.parametrize("visible", ["gaussian", "ising"])
def test_nothing_missing_is_training_on_all(visible):
    """With the exact gradient, which draws no random numbers of its own."""
    y, x = some_data(visible)
    results = []
    for observed in (None, torch.ones_like(y, dtype=torch.bool)):
        nbm = make_nbm(visible)
        trainer = make_trainer(nbm, num_epochs=1, batch_size=110, negative_phase="exact")
        trainer.fit(y, context=x, observed=observed)
        results.append(nbm)
    for (name, a), (_, b) in zip(
        results[0].named_parameters(), results[1].named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("step", [6, 8], ids=["between-epochs", "mid-epoch"])
def test_resumed_equals_uninterrupted(name, step, tmp_path, monkeypatch):
    visible, path = name.split("-")[0], tmp_path / "checkpoint.safetensors"
    y, x = some_data(visible)
    if name == "ising-rates":
        y = (y + 1) / 2 * 0.9
    mask = some_mask(*y.shape)
    whole = make_trainer(make_nbm(visible), **RUNS[name])
    whole.fit(y, context=x, observed=mask)
    trainer = make_trainer(make_nbm(visible), checkpoint=path, **RUNS[name])
    fit_until(step, trainer, y, x, monkeypatch, observed=mask)
    torch.manual_seed(123)
    resumed = Trainer.from_checkpoint(path)
    resumed.fit(y, context=x, observed=mask)
    assert resumed.epoch == NUM_EPOCHS
    assert_same(resumed.module, whole.module)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_metrics_are_those_of_the_completed_rows():
    y, x = some_data("ising")
    mask = some_mask(110, 3)
    trainer = make_trainer(make_nbm("ising"), num_epochs=1, metrics_rows=50)
    (record,) = trainer.fit(y, context=x, observed=mask)
    rows = trainer._gradient.completed
    assert torch.equal(rows[mask], y[mask]) and not torch.equal(rows, y)
    with torch.no_grad():
        expected = trainer.module.condition(x[:50]).free_energy(rows[:50]).mean().item()
    assert record["free_energy_train"] == pytest.approx(expected, rel=1e-12)


def test_couplings_are_learnt_from_incomplete_rows():
    """Of two strongly coupled spins one in three is hidden: the observed likelihood gets near the best."""
    torch.manual_seed(0)
    x = torch.eye(2, dtype=torch.float64).repeat(600, 1)
    first = torch.where(torch.rand(1200) < 0.5, 1.0, -1.0).double()
    sign = torch.where(torch.rand(1200) < 0.9, 1.0, -1.0) * (x[:, 0] - x[:, 1])
    y = torch.stack([first, first * sign], -1)
    mask = torch.rand(1200, 2) < 0.7
    nbm = nn.NeuralBoltzmannMachine(2, 2, 2, "ising", hidden_sizes=(), seed=0, dtype=torch.float64)
    options = {"negative_phase": "exact", "optimizer": "adam", "learning_rate": 0.05}
    schedule = {"learning_rate_schedule": "cosine", "num_steps": 3}
    config = TrainerConfig(
        num_epochs=60, batch_size=300, seed=0, progress=False, **options, **schedule
    )
    Trainer(nbm, config).fit(torch.where(mask, y, torch.nan), context=x, observed=mask)
    with torch.no_grad():
        machine = nbm.condition(torch.eye(2, dtype=torch.float64))
        draws = machine.sample((20_000,))
    product = (draws[..., 0] * draws[..., 1]).mean(0)
    both = mask.all(-1)
    for k, sign in enumerate((1.0, -1.0)):
        rows = y[both & (x[:, k] == 1)]
        target = (rows[:, 0] * rows[:, 1]).mean().item()
        assert abs(target - 0.8 * sign) < 0.1
        assert abs(product[k].item() - target) < 0.06


def test_refusals():
    y, x = some_data("categorical")
    nbm = make_nbm("categorical")
    before = states(nbm)
    with pytest.raises(ValueError, match=r"observed must have shape \(110, 6\), got \(110, 5\)"):
        make_trainer(nbm).fit(y, context=x, observed=torch.ones(110, 5, dtype=torch.bool))
    partly = torch.ones(110, 6, dtype=torch.bool)
    partly[3, 0] = False
    with pytest.raises(ValueError, match="observed"):
        make_trainer(nbm).fit(y, context=x, observed=partly)
    bad = y.clone()
    bad[4, :3] = 1.0
    with pytest.raises(ValueError, match="1"):
        make_trainer(nbm).fit(bad, context=x, observed=torch.ones_like(partly))
    assert all(torch.equal(before[name], t) for name, t in nbm.state_dict().items())
