# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Deep machines put together from machines that were trained layer by layer."""

import itertools

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.nn import serialization
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training import Callback, Trainer, TrainerConfig, pretrain, train_stack
from pyro_ebm.training.pretraining import PRETRAINING_METHODS
from pyro_ebm.training.pretraining.stack import features
from tests.training.machines import some_bits

METHOD_2009, METHOD_2012, METHOD_RBM = PRETRAINING_METHODS
DATA = some_bits(40, 4).double()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def options(**changes) -> TrainerConfig:
    """Large weights after a short run."""
    base = {"num_epochs": 1, "batch_size": 20, "learning_rate": 0.3, "seed": 3, "progress": False}
    return TrainerConfig(**{**base, **changes})


def deep(sizes=(3, 2), num_visible=4, **changes) -> nn.DBM:
    module = nn.DBM(
        num_visible,
        list(sizes),
        **{"weight_scale": 0.8, "dtype": torch.float64, "seed": 0, **changes},
    )
    return module.init_from_data(DATA[:, :num_visible])


def bits(number: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)), dtype=torch.float64)


def normalised(log_weights: Tensor) -> Tensor:
    return log_weights - log_weights.logsumexp(0)


def layer_prior(machine: TiedRBM, side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p of the layer that is no copy, from the energy of a machine of bits, and its parameters."""
    form = machine().canonical()
    weight, b, c = form.weight.detach(), form.visible_bias.detach(), form.hidden_bias.detach()
    if side == "hidden":
        weight, b, c = weight.T, c, b
    x = bits(weight.shape[1])
    copies = machine.visible_copies * machine.hidden_copies
    log_p = x @ c + copies * torch.nn.functional.softplus(b + x @ weight.T).sum(-1)
    return normalised(log_p), weight, b, c


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("method, share, top", [(METHOD_2009, 1 / 2, 2), (METHOD_2012, 1 / 3, 4)])
def test_the_prior_is_the_geometric_mean(method, share, top, centered):
    """p(v) is the sum of p(v | h1) of the first machine under the mixed prior of both."""
    module = deep((3, top), centered=centered)
    stack = pretrain(module, DATA, options(), method=method)
    first, second = stack.machines
    assert (first.visible_copies, second.hidden_copies) == ((2, 2) if share == 1 / 2 else (3, 3))
    log_p1, weight, b, _ = layer_prior(first, "visible")
    log_p2, *_ = layer_prior(second, "hidden")
    # The prior of the first machine as the explicit machine of all copies has it.
    prior = normalised(share * log_p1 + (1 - share) * log_p2)
    v, h = bits(4), bits(3)
    theta = b + h @ weight.T
    log_v = v @ theta.T - torch.nn.functional.softplus(theta).sum(-1)
    expected = (log_v + prior).logsumexp(1)
    dist = module()
    log_z = exact_log_partition(dist.bipartite())
    got = torch.stack([exact_log_partition(dist.posterior(x).bipartite()) for x in v]) - log_z
    close(got, expected)
    # What the docstring claims of the bound, for any q.
    q = torch.rand(8, dtype=torch.float64)
    q /= q.sum()
    gain = (q * (prior - log_p1)).sum()
    assert gain >= (1 - share) * (q * (log_p2 - log_p1)).sum() - 1e-12
    assert (log_p1 - log_p2).abs().max() > 0.01


@pytest.mark.parametrize("centered", [False, True])
def test_three_hidden_layers_by_hand(centered):
    module = deep((3, 3, 2), centered=centered)
    stack = pretrain(module, DATA, options())
    first, middle, top = stack.machines
    assert (first.visible_copies, top.hidden_copies) == (2, 2)
    assert type(middle) is nn.RBM and first.hidden_copies == top.visible_copies == 1
    forms = [machine().canonical() for machine in stack.machines]
    for got, form, scale in zip(module.weights, forms, (1.0, 0.5, 1.0), strict=True):
        close(got, scale * form.weight)
    # Biases of the form without offsets.
    even = module().bipartite().canonical()
    b0, b2 = even.visible_bias.split([4, 3])
    b1, b3 = even.hidden_bias.split([3, 2])
    close(b0, forms[0].visible_bias)
    close(b1, (forms[0].hidden_bias + forms[1].visible_bias) / 2)
    close(b2, (forms[1].hidden_bias + forms[2].visible_bias) / 2)
    close(b3, forms[2].hidden_bias)


def test_one_hidden_layer_is_an_rbm():
    module = deep((3,))
    rbm = nn.RBM(4, 3, dtype=torch.float64, weight_scale=0.8, seed=3).init_from_data(DATA)
    pretrain(module, DATA, options())
    Trainer(rbm, options()).fit(DATA)
    close(module.weights[0], rbm.weight, 0.0)
    v = bits(4)
    close(module().free_energy(v), rbm().free_energy(v))


@pytest.mark.parametrize("centered", [False, True])
def test_the_bound_starts_at_the_likelihood_of_the_rbm(centered):
    module = deep((3, 2), centered=centered)
    stack = pretrain(module, DATA, options(), method=METHOD_RBM, upper_scale=0.0)
    (rbm,) = stack.machines
    v, dist, machine = bits(4), module(), rbm()
    log_z = exact_log_partition(dist.bipartite())
    close(
        -dist.free_energy(v) - log_z, -machine.free_energy(v) - exact_log_partition(machine), 1e-9
    )
    # Symmetry is broken reproducibly.
    again = deep((3, 2), centered=centered)
    pretrain(module, DATA, options(), method=METHOD_RBM)
    pretrain(again, DATA, options(), method=METHOD_RBM)
    assert module.weights[1].unique().numel() == 6
    close(module.weights[1], again.weights[1], 0.0)


def test_pretraining_makes_the_bound_better():
    """On rows with structure, against the start: the units alone."""
    generator = torch.Generator().manual_seed(0)
    left = torch.bernoulli(torch.full((400, 1), 0.5, dtype=torch.float64), generator=generator)
    flips = torch.bernoulli(torch.full((400, 6), 0.1, dtype=torch.float64), generator=generator)
    data = (left.expand(-1, 6) - flips).abs()
    config = options(num_epochs=20, learning_rate=0.2, batch_size=40, num_steps=2)

    def bound(module):
        dist = module()
        return (-dist.free_energy(data) - exact_log_partition(dist.bipartite())).mean().item()

    values = {}
    for method in (METHOD_2009, METHOD_2012):
        module = nn.DBM(6, [4, 4], dtype=torch.float64, seed=0).init_from_data(data)
        values["start"] = bound(module)
        pretrain(module, data, config, method=method)
        values[method] = bound(module)
    # The entropy of the data is 6 H(0.1) + log 2 = 2.64 nats at most.
    assert values["start"] < -4.1
    assert values[METHOD_2009] > -3.3 and values[METHOD_2012] > -3.5


# --- the stack ----------------------------------------------------------------------------------


def test_features_are_the_doubled_means():
    module = TiedRBM(4, 3, visible_copies=2, weight_scale=0.5, seed=0, dtype=torch.float64)
    grey = torch.rand(7, 4, dtype=torch.float64)
    expected = torch.sigmoid(module.hidden.bias + 2 * grey @ module.weight)
    close(features(module, grey), expected.detach())
    plain = module.untied()
    close(features(plain, grey), torch.sigmoid(plain.hidden.bias + grey @ plain.weight).detach())


def test_features_of_other_families():
    spins = nn.RBM(4, 3, hidden="ising", weight_scale=0.5, seed=0, dtype=torch.float64)
    mean = spins().hidden.mean(DATA @ spins.weight)
    close(features(spins, DATA), ((1 + mean) / 2).detach())
    groups = nn.RBM(4, 6, hidden="categorical", hidden_options={"num_states": 3}, seed=0)
    drawn = features(groups, DATA, seed=1)
    assert torch.equal(drawn.reshape(40, 2, 3).sum(-1), torch.ones(40, 2))
    assert torch.equal(drawn, features(groups, DATA, seed=1))
    assert not torch.equal(drawn, features(groups, DATA, seed=2))


def test_upper_machines_learn_the_states_of_the_layer_below():
    machines = [
        nn.RBM(4, 3, seed=0, dtype=torch.float64),
        nn.RBM(3, 2, seed=1, dtype=torch.float64),
    ]
    stack = train_stack(machines, DATA, options(num_epochs=2), validation=DATA[:9])
    rates = features(stack.machines[0], DATA)
    twin = nn.RBM(3, 2, seed=1, dtype=torch.float64)
    twin.visible.init_from_data(rates)
    trainer = Trainer(twin, options(num_epochs=2, seed=4, binarize=True))
    trainer.fit(rates, features(stack.machines[0], DATA[:9]))
    close(stack.machines[1].weight, twin.weight, 0.0)
    for got, expected in zip(stack.histories[1], trainer.history, strict=True):
        assert {**got, "seconds": 0} == {**expected, "seconds": 0}
    assert "free_energy_gap" in stack.histories[1][0]


@pytest.mark.parametrize("family", ["ising", "gaussian", "relu", "categorical", "multinomial"])
def test_families_of_the_hidden_layers(family):
    own = {"categorical": {"num_states": 2}, "multinomial": {"total_count": 2}}.get(family, {})
    module = deep((4, 4), hidden=[family, "bernoulli"], hidden_options=[own, {}], weight_scale=0.05)
    pretrain(module, DATA, options(learning_rate=0.01))
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_gaussian_rows_keep_their_precision():
    rows = torch.randn(50, 3, dtype=torch.float64) * 2.0
    module = nn.DBM(3, [4, 4], "gaussian", dtype=torch.float64, seed=0).init_from_data(rows)
    precision = module.visible.log_precision.clone()
    pretrain(module, rows, options(learning_rate=0.01), method=METHOD_2012)
    close(module.visible.log_precision, precision, 0.0)
    close(module.weights[1][:, :2], module.weights[1][:, 2:], 0.0)


def test_averages_are_what_is_learnt():
    module = deep((3, 2))
    stack = pretrain(module, DATA, options(averaging=0.9))
    close(module.weights[0], stack.machines[0].weight, 0.0)


def test_reproducible_and_silent_about_the_global_generator():
    first, second = deep(), deep()
    pretrain(first, DATA, options())
    torch.manual_seed(77)
    pretrain(second, DATA, options())
    for got, expected in zip(first.parameters(), second.parameters(), strict=True):
        close(got, expected, 0.0)


def test_resumed_runs_end_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(serialization._CLASSES, "TiedRBM", TiedRBM)
    whole, parts = deep(), deep()
    expected = pretrain(whole, DATA, options(num_epochs=4))
    files = options(num_epochs=2, checkpoint=tmp_path / "pre.safetensors")
    pretrain(parts, DATA, files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pre.safetensors", "pre_2.safetensors"]
    # The first machine goes on; the second starts anew, as its data have changed.
    (tmp_path / "pre_2.safetensors").unlink()
    stack = pretrain(parts, DATA, options(num_epochs=4, checkpoint=files.checkpoint), resume=True)
    for got, value in zip(parts.parameters(), whole.parameters(), strict=True):
        close(got, value, 0.0)
    assert [len(h) for h in stack.histories] == [len(h) for h in expected.histories] == [4, 4]
    # What is done is read.
    again = deep()
    pretrain(again, DATA, options(num_epochs=4, checkpoint=files.checkpoint), resume=True)
    close(again.weights[1], whole.weights[1], 0.0)
    with pytest.raises(ValueError, match="another machine"):
        pretrain(deep((2, 2)), DATA, files, resume=True)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: pretrain(nn.RBM(4, 2), DATA, options()), TypeError, "DBM"),
        (lambda: pretrain(deep(), DATA, options(), method="x"), ValueError, "method"),
        (
            lambda: pretrain(deep((3, 3, 2)), DATA, options(), method=METHOD_2012),
            ValueError,
            "two hidden layers",
        ),
        (
            lambda: pretrain(deep((3, 3)), DATA, options(), method=METHOD_2012),
            ValueError,
            "even number",
        ),
        (lambda: pretrain(deep(), DATA, [options()]), ValueError, "one for all or 2, got 1"),
        (lambda: pretrain(deep(), DATA, [options(), None]), TypeError, "NoneType"),
        (lambda: pretrain(deep(), DATA[:, :3], options()), ValueError, "data must have shape"),
        (lambda: pretrain(deep(), DATA, options(), resume=True), ValueError, "checkpoint"),
        (
            lambda: pretrain(deep(), DATA, [options(checkpoint="a.safetensors")] * 2),
            ValueError,
            "files of their own",
        ),
        (lambda: train_stack([], DATA, options()), ValueError, "at least one"),
        (lambda: train_stack([deep()], DATA, options()), TypeError, "machine 0"),
        (
            lambda: train_stack([nn.RBM(4, 3), nn.RBM(2, 2)], DATA, options()),
            ValueError,
            "3 bernoulli entries.*2 bernoulli",
        ),
        (
            lambda: deep((3, 2)).init_from_rbms([nn.RBM(4, 3), nn.RBM(3, 2)], lower_share=2.0),
            ValueError,
            "lower_share",
        ),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_options_change_at_resume(tmp_path):
    """What is given when a run goes on is what it goes on with."""
    ends = []
    for name, rate in (("same", 0.3), ("changed", 0.01)):
        file = tmp_path / f"{name}.safetensors"
        pretrain(deep(), DATA, options(num_epochs=1, checkpoint=file))
        config = options(num_epochs=3, checkpoint=file, learning_rate=rate)
        ends.append(pretrain(deep(), DATA, config, resume=True).machines[0].weight)
    assert not torch.equal(*ends)


def test_impossible_options_of_upper_machines_cost_no_training():
    seen = []

    class Seen(Callback):
        def on_epoch_end(self, trainer, record):
            seen.append(record)

    with pytest.raises(ValueError, match="sparsity_cost"):
        pretrain(deep(), DATA, options(sparsity_cost=0.1), callbacks=[Seen()])
    assert not seen
