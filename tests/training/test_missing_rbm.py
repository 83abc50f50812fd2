# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Training of an RBM on data with missing entries, in both senses."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training import marginal_gradient as marginal
from pyro_ebm.training.absent_gradient import AbsentExactGradient, AbsentGradient
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.marginal_gradient import MarginalGradient
from tests.training import absent as brute
from tests.training.machines import (
    assert_same_state,
    interrupt_at,
    random_module,
    some_bits,
    state_of,
)
from tests.training.test_gradient_of_likelihood import differentiate, learnt

FAMILIES = list(brute.UNIT_STATES)
by_family = pytest.mark.parametrize("family", FAMILIES)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
ROWS = torch.arange(8)
#: A t of 49 degrees of freedom is beyond 8 with probability 2e-10.
REPETITIONS, T_BOUND = 50, 8.0


def some_rows(module: nn.RBM) -> tuple[Tensor, Tensor]:
    """States that the module does not explain, and masks."""
    with torch.no_grad():
        unit = module.visible()
        field = torch.linspace(-1, 1, unit.size).to(module.weight)
        v = unit.sample(field.expand(8, -1), torch.Generator().manual_seed(2))
    return v, brute.some_masks(module)


def gradients(module: nn.RBM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learnt(module).items()}


def assert_close(module: nn.RBM, expected: dict[str, Tensor]) -> None:
    for name, got in gradients(module).items():
        torch.testing.assert_close(got, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def assert_mean(draws: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        table = torch.stack([draw[name] for draw in draws])
        error = (table.std(0) / len(draws) ** 0.5).clamp(min=1e-11)
        t = ((table.mean(0) - value) / error).abs().max().item()
        assert t < T_BOUND, f"{name}: {t:.1f} standard errors from the exact gradient"


# --- summed out -----------------------------------------------------------------------------------


@by_family
@centred_or_not
def test_exact_gradient_of_what_is_observed(family, centered):
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    expected = differentiate(module, -brute.marginal_log_likelihood(module, v, observed).mean())
    gradient = MarginalGradient(ExactGradient(module, TrainerConfig(negative_phase="exact")))
    gradient.start(v, observed)
    gradient(v, ROWS)
    assert_close(module, expected)
    assert torch.equal(gradient.completed[observed], v[observed].to(gradient.completed.dtype))


def test_exact_gradient_of_gaussian_units():
    """A mixture of normal laws, one a hidden state."""
    module = random_module(("gaussian", "bernoulli"), centered=True, learn_precision=True)
    v = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(8, 2)
    observed = torch.rand(8, 2, generator=torch.Generator().manual_seed(3)) < 0.6
    observed[0], observed[1] = True, False
    dist = module()
    h = brute.layer_states("bernoulli", 3)
    log_h = -dist.transpose().free_energy(h)
    mean = dist.visible.mean(dist.visible_field(h))
    normal = torch.distributions.Normal(mean.unsqueeze(1), dist.visible.precision.rsqrt())
    seen = torch.where(observed, normal.log_prob(v), 0.0).sum(-1)
    log_p = torch.logsumexp((log_h - torch.logsumexp(log_h, 0)).unsqueeze(-1) + seen, 0)
    expected = differentiate(module, -log_p.mean())
    gradient = MarginalGradient(ExactGradient(module, TrainerConfig(negative_phase="exact")))
    gradient.start(v, observed)
    gradient(torch.where(observed, v, torch.nan), ROWS)
    assert_close(module, expected)


@by_family
@pytest.mark.parametrize("way", ["table", "sweeps"])
def test_gradient_of_draws(family, way, monkeypatch):
    """Its mean is the exact gradient; sweeps start in equilibrium, as those of a long run do."""
    if way == "sweeps":
        monkeypatch.setattr(marginal, "MAX_TABLE", 0)
    module = random_module((family, "bernoulli"), centered=True)
    v, observed = some_rows(module)
    expected = differentiate(module, -brute.marginal_log_likelihood(module, v, observed).mean())
    copies, chains = 30, 200
    v, observed = v.repeat(copies, 1), observed.repeat(copies, 1)
    every = brute.layer_states(family, brute.num_units(module))
    dist = module().detach()
    agrees = ((every.unsqueeze(1) == v) | ~observed).all(-1)
    log_p = torch.where(agrees, -dist.free_energy(every).unsqueeze(-1), -math.inf)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(REPETITIONS):
        choice = torch.multinomial(log_p.softmax(0).T, 1, generator=generator).squeeze(-1)
        inner = ContrastiveGradient(module, TrainerConfig(persistent=True), generator)
        inner.phase.chains = dist.sample((chains,), generator=generator)
        gradient = MarginalGradient(inner, generator)
        start = every[choice] if way == "sweeps" else every[:1].expand_as(v)
        gradient.start(start, observed)
        gradient(torch.where(observed, v, 9.0), torch.arange(len(v)))
        draws.append(gradients(module))
    assert_mean(draws, expected)


def kl(module: nn.RBM, p: Tensor, states: Tensor) -> float:
    with torch.no_grad():
        dist = module()
        log_q = -dist.free_energy(states) - exact_log_partition(dist)
    return (p * (p.log() - log_q)).sum().item()


def test_rows_that_miss_entries_at_random_teach_the_law():
    """What is missing depends on a unit that is always seen; the law is learnt nearly as from all entries.

    Filling in means and keeping complete rows only are far off.
    """
    states = brute.layer_states("bernoulli", 4)
    weight = torch.tensor([[2.0, 0.0], [2.0, -1.0], [-2.0, 2.0], [0.0, 2.5]]).double()
    truth = nn.RBM(4, 2, seed=0, dtype=torch.float64).init_from_arrays(
        weight, [-1.0, -0.5, 0.5, -1.0], [-0.5, -0.5]
    )
    with torch.no_grad():
        dist = truth()
        p = torch.softmax(-dist.free_energy(states), 0)
    generator = torch.Generator().manual_seed(0)
    v = states[torch.multinomial(p, 1500, replacement=True, generator=generator)]
    drop = torch.where(v[:, :1] == 1, 0.7, 0.2)
    observed = torch.rand(v.shape, generator=generator, dtype=torch.float64) >= drop
    observed[:, 0] = True
    mean = torch.where(observed, v, 0.0).sum(0) / observed.sum(0)
    filled = torch.where(observed, v, (mean > 0.5).double())
    complete = v[observed.all(-1)]
    config = TrainerConfig(
        num_epochs=80,
        batch_size=1500,
        negative_phase="exact",
        optimizer="adam",
        learning_rate=0.2,
        learning_rate_schedule="cosine",
        seed=0,
        progress=False,
    )
    found = {}
    for name, rows, mask in (
        ("all", v, None),
        ("masked", torch.where(observed, v, torch.nan), observed),
        ("filled", filled, None),
        ("complete", complete, None),
    ):
        module = nn.RBM(4, 3, seed=0, weight_scale=0.3, dtype=torch.float64)
        Trainer(module, config).fit(rows, observed=mask)
        found[name] = kl(module, p, states)
    # 15 parameters and 1,500 rows: about 15 / 3000 nats are lost to the finite sample in any case.
    assert found["all"] < 0.02
    assert found["masked"] < found["all"] + 0.02
    assert found["filled"] > 0.2 and found["complete"] > 0.2


# --- absent ---------------------------------------------------------------------------------------


@by_family
@centred_or_not
def test_exact_gradient_of_own_machines(family, centered):
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    expected = differentiate(module, -brute.absent_log_likelihood(module, v, observed).mean())
    config = TrainerConfig(negative_phase="exact", missing="absent")
    gradient = AbsentExactGradient(module, config)
    gradient.start(v, observed)
    gradient(torch.where(observed, v, torch.nan), ROWS)
    assert_close(module, expected)
    # They are not marginals of one machine, except where a unit is the whole layer.
    other = differentiate(module, -brute.marginal_log_likelihood(module, v, observed).mean())
    same = (other["weight"] - expected["weight"]).abs().max() < 1e-9
    assert same == (family == "multinomial")


@by_family
@centred_or_not
def test_long_chains_give_the_exact_gradient(family, centered):
    """CD-k of many steps from rows of many masks: every chain has the units of its own row."""
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    expected = differentiate(module, -brute.absent_log_likelihood(module, v, observed).mean())
    copies = 30
    generator = torch.Generator().manual_seed(0)
    gradient = AbsentGradient(module, TrainerConfig(num_steps=10, missing="absent"), generator)
    gradient.start(v, observed.repeat(copies, 1))
    draws = []
    for _ in range(REPETITIONS):
        gradient(torch.where(observed, v, 9.0).repeat(copies, 1), torch.arange(8 * copies))
        draws.append(gradients(module))
    assert_mean(draws, expected)


def test_a_mask_that_chains_forget_is_seen():
    """Negatives of all units beside positives of some: the test above rejects it."""
    module = random_module(("bernoulli", "bernoulli"))
    v, observed = some_rows(module)
    expected = differentiate(module, -brute.absent_log_likelihood(module, v, observed).mean())
    generator = torch.Generator().manual_seed(0)
    gradient = ContrastiveGradient(module, TrainerConfig(num_steps=10), generator)
    draws = []
    for _ in range(REPETITIONS):
        gradient(torch.where(observed, v, 0.0).repeat(50, 1), torch.arange(400))
        draws.append(gradients(module))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(draws, expected)


def test_means_and_dropout_keep_the_mask():
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    v, observed = some_rows(module)
    config = TrainerConfig(
        missing="absent", chain_visible="mean", chain_hidden="mean", dropout=0.5, sparsity_cost=0.1
    )
    gradient = AbsentGradient(module, config, torch.Generator().manual_seed(0))
    gradient.start(v, observed.new_zeros(8, 3))
    gradient(v, ROWS)
    # Rows that have nothing teach nothing about the visible layer.
    assert torch.equal(module.visible.bias.grad, torch.zeros(3).double())


# --- runs -----------------------------------------------------------------------------------------

DATA = some_bits(110)
MASK = torch.rand(110, 6, generator=torch.Generator().manual_seed(8)) < 0.6
MASK[0], MASK[1] = True, False
NUM_EPOCHS = 4
RUNS = {
    "table": {"persistent": True},
    "sweeps": {"num_steps": [1, 2]},
    "exact": {"negative_phase": "exact"},
    "rates": {"binarize": True, "persistent": True},
    "tempering": {"persistent": True, "negative_phase": "tempering", "num_replicas": 3},
    "absent": {"missing": "absent", "num_steps": [1, 2]},
    "absent-exact": {"missing": "absent", "negative_phase": "exact"},
}
by_run = pytest.mark.parametrize("name", RUNS)


def make_trainer(name: str, **options) -> Trainer:
    module = nn.RBM(6, 11 if name == "sweeps" else 4, seed=0, centered=True, weight_scale=1.0)
    config = {
        "num_epochs": NUM_EPOCHS,
        "batch_size": 40,
        "learning_rate": 0.1,
        "momentum": 0.5,
        "seed": 5,
        "progress": False,
    }
    return Trainer(module, TrainerConfig(**{**config, **RUNS[name], **options}))


def data_of(name: str, garbage: float = math.nan) -> Tensor:
    rows = DATA * 0.8 + 0.1 if name == "rates" else DATA
    return torch.where(MASK, rows, garbage)


@by_run
@pytest.mark.parametrize("step", [6, 8], ids=["between-epochs", "mid-epoch"])
def test_resumed_equals_uninterrupted(name, step, tmp_path, monkeypatch):
    whole = make_trainer(name)
    whole.fit(data_of(name), observed=MASK)
    path = tmp_path / "checkpoint.safetensors"
    trainer = make_trainer(name, checkpoint=path)
    kind = {"absent": AbsentGradient, "absent-exact": AbsentExactGradient}
    with interrupt_at(step, kind.get(name, MarginalGradient), monkeypatch):
        trainer.fit(data_of(name), observed=MASK)
    torch.manual_seed(123)
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 2
    resumed.fit(data_of(name), observed=MASK)
    assert_same_state(resumed.module, whole.module)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_completions_of_the_checkpoint_matter(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    make_trainer("sweeps", num_epochs=2, checkpoint=path).fit(data_of("sweeps"), observed=MASK)
    ends = []
    for forget in (False, True):
        trainer = Trainer.from_checkpoint(path, num_epochs=3, checkpoint=None)
        assert trainer._gradient.completed.dtype == torch.int8
        if forget:
            trainer._gradient.completed = 1 - trainer._gradient.completed
        trainer.fit(data_of("sweeps"), observed=MASK)
        ends.append(state_of(trainer.module)["weight"])
    assert not torch.equal(*ends)
    with pytest.raises(ValueError, match="observed must be given: rows of the run that goes on"):
        Trainer.from_checkpoint(path, num_epochs=3).fit(DATA)
    with pytest.raises(
        ValueError, match=r"completed rows have shape \(110, 6\), the data \(9, 6\)"
    ):
        Trainer.from_checkpoint(path, num_epochs=3).fit(DATA[:9], observed=MASK[:9])


@by_run
def test_what_stands_at_missing_entries_is_not_read(name):
    """Nor does the global generator have a part in the run."""
    ends = []
    for garbage in (math.nan, 77.0):
        torch.manual_seed(int(garbage == 77.0))
        state = torch.get_rng_state()
        trainer = make_trainer(name, num_epochs=2)
        history = trainer.fit(data_of(name, garbage), observed=MASK)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append((trainer.module, [{**record, "seconds": 0} for record in history]))
    assert_same_state(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("name", ["exact", "absent", "absent-exact"])
def test_nothing_missing_is_training_on_all(name):
    first, second = make_trainer(name, num_epochs=2), make_trainer(name, num_epochs=2)
    if name == "exact":
        first = make_trainer(name, num_epochs=2, batch_size=110)
        second = make_trainer(name, num_epochs=2, batch_size=110)
    first.fit(DATA)
    second.fit(DATA, observed=torch.ones_like(MASK))
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_rows_of_bytes():
    """One-hot rows need not be floating-point numbers."""
    module = random_module(("categorical", "bernoulli"), dtype=torch.float32)
    v, observed = some_rows(module)
    again = nn.RBM(**module.config())
    again.load_state_dict(module.state_dict())
    for other, rows in ((module, v), (again, torch.where(observed, v, 0.0).to(torch.uint8))):
        for missing in ("marginal", "absent"):
            config = TrainerConfig(num_epochs=2, missing=missing, seed=0, progress=False)
            Trainer(other, config).fit(rows, observed=observed)
    assert_same_state(module, again)


@pytest.mark.parametrize("name", ["table", "absent"])
def test_offsets_start_at_the_mean_of_what_is_seen(name):
    trainer = make_trainer(name, num_epochs=0)
    trainer.fit(data_of(name), observed=MASK)
    count = len(DATA) if name == "absent" else MASK.sum(0)
    expected = torch.where(MASK, DATA, 0.0).sum(0) / count
    torch.testing.assert_close(trainer.module.visible_offset, expected)


def test_metrics_of_what_is_seen():
    trainer = make_trainer("sweeps", num_epochs=1, metrics_rows=50)
    (record,) = trainer.fit(data_of("sweeps"), DATA, observed=MASK)
    rows = trainer._gradient.completed[:50].float()
    assert torch.equal(rows[MASK[:50]], DATA[:50][MASK[:50]])
    with torch.no_grad():
        dist = trainer.module()
        energy = dist.free_energy(rows).mean().item()
    assert record["free_energy_train"] == pytest.approx(energy, rel=1e-6)
    assert "free_energy_gap" in record
    trainer = make_trainer("absent", num_epochs=1, metrics_rows=50)
    (record,) = trainer.fit(data_of("absent"), observed=MASK)
    with torch.no_grad():
        dist = trainer.module()
        rows, seen = torch.where(MASK, DATA, 0.0)[:50], MASK[:50]
        mean = dist.visible.mean(dist.visible_field(dist.hidden.mean(dist.hidden_field(rows))))
    error = (rows - mean)[seen].square().mean().item()
    assert record["reconstruction_error"] == pytest.approx(error, rel=1e-5)


def test_parts_of_the_data():
    """Completions go on where the mask is the same, and begin anew where it is not."""
    trainer = make_trainer("sweeps")
    trainer.partial_fit(data_of("sweeps"), observed=MASK)
    before = trainer._gradient.completed
    trainer.partial_fit(data_of("sweeps"), observed=MASK)
    assert trainer._gradient.completed is before
    trainer.partial_fit(data_of("sweeps")[:50], observed=MASK[:50])
    assert trainer._gradient.completed.shape == (50, 6)
    trainer.partial_fit(DATA)
    assert isinstance(trainer._gradient, ContrastiveGradient)
    assert "completed" not in trainer._gradient.state()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "relu"])
def test_units_that_cannot_be_absent(family):
    module = random_module((family, "bernoulli"))
    for phase in ("gibbs", "exact"):
        with pytest.raises(ValueError, match="absent units must be bits, spins, one-hot groups"):
            Trainer(module, TrainerConfig(missing="absent", negative_phase=phase))


@pytest.mark.parametrize(
    "option", [{"persistent": True}, {"num_chains": 5}, {"chain_start": "noise"}], ids=str
)
def test_chains_of_absent_units_start_at_their_rows(option):
    with pytest.raises(ValueError, match=f"{min(option)} is no option of missing='absent'"):
        TrainerConfig(missing="absent", **option)


def test_what_absent_units_exclude():
    with pytest.raises(ValueError, match=r"metrics \['pseudo_log_likelihood'\] are of whole mach"):
        TrainerConfig(missing="absent", metrics=["pseudo_log_likelihood"])
    config = TrainerConfig(missing="absent", progress=False)
    with pytest.raises(ValueError, match="validation rows of missing='absent'"):
        Trainer(nn.RBM(6, 2), config).fit(DATA, DATA, observed=MASK)
    with pytest.raises(ValueError, match="preconditioner='diagonal' is the geometry of one mach"):
        Trainer(nn.RBM(6, 2), TrainerConfig(missing="absent", preconditioner="diagonal"))
    model = nn.NeuralBoltzmannMachine(2, 2, 2, "ising", hidden_sizes=())
    with pytest.raises(ValueError, match=r"missing='absent' is an option of a nn\.RBM"):
        Trainer(model, config)
    labelled = nn.ClassificationRBM(4, 2, 2)
    with pytest.raises(ValueError, match=r"missing='absent' is an option of a nn\.RBM without"):
        Trainer(labelled, config)
    with pytest.raises(ValueError, match=r"observed is no option of a nn\.Class"):
        Trainer(labelled, TrainerConfig(progress=False)).fit(DATA, observed=MASK)


def test_masks_are_checked():
    trainer = make_trainer("table")
    before = state_of(trainer.module)
    with pytest.raises(TypeError, match="observed must be a tensor, got list"):
        trainer.fit(DATA, observed=MASK.tolist())
    with pytest.raises(ValueError, match=r"observed must have shape \(110, 6\), got \(6,\)"):
        trainer.fit(DATA, observed=MASK[0])
    with pytest.raises(ValueError, match="observed must be boolean"):
        trainer.fit(DATA, observed=MASK.float())
    bad = DATA.clone()
    bad[0, 0] = 0.5
    with pytest.raises(ValueError, match="outside of the support at 1 of"):
        trainer.fit(bad, observed=MASK)
    assert all(torch.equal(before[name], t) for name, t in trainer.module.state_dict().items())
