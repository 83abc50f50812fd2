# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines of the units that rows have, against enumeration of every state."""

import pytest
import torch

from pyro_ebm.distributions import (
    BernoulliRBM,
    GaussianBernoulliRBM,
    absent_free_energy,
    absent_machine,
)
from pyro_ebm.infer import (
    absent_log_likelihood,
    absent_log_partition,
    exact_log_partition,
    log_likelihood,
    predict_absent,
)
from tests.training import absent as brute
from tests.training.machines import random_module

FAMILIES = list(brute.UNIT_STATES)
by_family = pytest.mark.parametrize("family", FAMILIES)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def some_rows(module):
    with torch.no_grad():
        v = module().sample((8,), generator=torch.Generator().manual_seed(1))
    return v, brute.some_masks(module)


@by_family
@centred_or_not
def test_log_likelihood_of_every_mask(family, centered):
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    value = torch.where(observed, v, torch.nan)
    with torch.no_grad():
        expected = brute.absent_log_likelihood(module, v, observed)
        dist = module()
        close(absent_log_likelihood(dist, value, observed), expected)
        # The sum over what is present, where the hidden layer may not be enumerated.
        log_z = absent_log_partition(dist, observed)
        assert log_z.shape == (8,) and log_z.dtype == torch.float64
        # Row 1 has nothing: its machine is the hidden layer alone, of which some states are left.
        limit = 27 if family == "categorical" else 10
        tight = absent_log_partition(random_hidden(dist), observed, max_states=limit)
        close(tight, absent_log_partition(random_hidden(dist), observed))


def random_hidden(dist):
    """A machine with more hidden states than visible ones."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(dist.visible.size, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    return type(dist)(dist.visible, dist.hidden.replace(bias=bias), weight)


@by_family
@centred_or_not
def test_the_machine_of_every_mask(family, centered):
    """Its log Z, free energies and draws are those of the units that exist."""
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    with torch.no_grad():
        dist = module()
        machine = absent_machine(dist, observed)
        assert machine.batch_shape == (8,)
        close(exact_log_partition(machine), absent_log_partition(dist, observed))
        # Rows that have everything are rows of the machine itself.
        everything = torch.ones_like(observed)
        close(absent_free_energy(dist, v, everything), dist.free_energy(v))
        close(exact_log_partition(absent_machine(dist, everything))[0], exact_log_partition(dist))
        # Absent units are drawn on their own: p(v) of the batch is p(v_o) times theirs.
        alone = dist.visible.replace(bias=machine.visible.bias)
        own = torch.where(observed, 0.0, v)
        rest = -(absent_free_energy(dist, v, observed)) - absent_log_partition(dist, observed)
        joint = log_likelihood(machine, v, exact_log_partition(machine))
        log_p = brute_units(alone, own, v, observed)
        close(joint, rest + log_p)


def brute_units(unit, own, v, observed):
    """Log-probability of absent units without couplings."""
    if type(unit).__name__ == "Multinomial":
        whole = -unit.energy(v) - unit.log_partition()
        return torch.where(observed.all(-1), 0.0, whole)
    bias = torch.where(observed, 0.0, unit.natural_bias)
    width = unit.size // unit.num_units
    if width > 1:
        log_p = torch.log_softmax(unit.bias, -1).flatten()
        return (own * log_p).sum(-1)
    low = 0.0 if type(unit).__name__ == "Bernoulli" else -1.0
    log_z = torch.logsumexp(torch.stack([low * bias, bias]), 0)
    return torch.where(observed, 0.0, own * bias - log_z).sum(-1)


@by_family
def test_offsets_change_no_probability(family):
    module = random_module((family, "bernoulli"), centered=True)
    v, observed = some_rows(module)
    with torch.no_grad():
        before = absent_log_likelihood(module(), v, observed)
        module.shift_offsets(torch.randn(len(module.weight)).double(), torch.randn(3).double())
        close(absent_log_likelihood(module(), v, observed), before)


@pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical"])
@centred_or_not
def test_predictions_are_conditionals(family, centered):
    module = random_module((family, "bernoulli"), centered=centered)
    v, observed = some_rows(module)
    table = brute.UNIT_STATES[family]
    width, units = table.shape[1], brute.num_units(module)
    present = observed[:, ::width]
    row, unit = (~present).nonzero(as_tuple=True)
    got = predict_absent(module(), torch.where(observed, v, torch.nan), observed, row, unit)
    assert got.shape == (len(row), len(table)) and units > 1
    for r, q, p in zip(row.tolist(), unit.tolist(), got, strict=True):
        joined = observed[r].clone()
        joined[q * width : (q + 1) * width] = True
        rows = v[r].repeat(len(table), 1)
        rows[:, q * width : (q + 1) * width] = table
        with torch.no_grad():
            log_p = brute.absent_log_joint(module, rows, joined)
        close(p, torch.softmax(log_p, 0))


def test_one_mean_field_step():
    module = random_module(("categorical", "bernoulli"))
    v, observed = some_rows(module)
    ask = torch.tensor([1, 1]), torch.tensor([0, 1])
    got = predict_absent(module(), v, observed, *ask, mean_field=True)
    with torch.no_grad():
        # Row 1 has nothing: the hidden layer is at its mean.
        mean = torch.sigmoid(module.hidden.bias)
        theta = module.visible.bias + (module.weight @ mean).reshape(-1, 3)
    close(got, torch.softmax(theta, -1))


def test_the_gradient_flows():
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    v, observed = some_rows(module)
    absent_log_likelihood(module(), v, observed).sum().backward()
    got = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    brute.absent_log_likelihood(module, v, observed).sum().backward()
    for name, p in module.named_parameters():
        close(got[name], p.grad)


def test_refusals():
    observed = torch.tensor([[True, False]])
    gaussian = GaussianBernoulliRBM(
        torch.zeros(2, 1), torch.zeros(2), torch.ones(2), torch.zeros(1)
    )
    for function in (absent_machine, absent_log_partition):
        with pytest.raises(ValueError, match=r"absent units must be bits.*got Gaussian units"):
            function(gaussian, observed)
    rbm = BernoulliRBM(torch.zeros(2, 1), torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="dist must be one machine, got one of batch shape"):
        absent_machine(rbm.expand((3,)), observed)
    with pytest.raises(ValueError, match=r"observed must be boolean, got torch\.float32"):
        absent_log_partition(rbm, observed.float())
    with pytest.raises(ValueError, match=r"observed must be a tensor of shape \(..., 2\)"):
        absent_log_partition(rbm, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="over max_states=1 states"):
        absent_log_partition(rbm, observed, max_states=1)
    with pytest.raises(ValueError, match="value is NaN at an observed entry"):
        absent_log_likelihood(rbm, torch.tensor([[torch.nan, 0.0]]), observed)
    potts = random_module(("categorical", "bernoulli"))()
    divided = torch.tensor([[True, False, False, True, True, True]])
    with pytest.raises(ValueError, match="one-hot group or none; some row divides one"):
        absent_log_partition(potts, divided)
    zero, one = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(ValueError, match="unit is observed in its row"):
        predict_absent(rbm, torch.zeros(1, 2), observed, zero, zero)
    with pytest.raises(ValueError, match=r"row must be in \[0, 1\), got 1 to 1"):
        predict_absent(rbm, torch.zeros(1, 2), observed, one, one)
    with pytest.raises(ValueError, match="unit must be whole numbers of shape"):
        predict_absent(rbm, torch.zeros(1, 2), observed, zero, torch.tensor([0.0]))
