# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""A deep machine as a Pyro distribution: shapes, plates, normaliser, guard, copies, dtypes."""

import copy
import pickle
import warnings

import pyro
import pytest
import torch
from pyro import poutine

from pyro_ebm.distributions import DBM, UnnormalizedGradientError, units
from pyro_ebm.infer import exact_log_partition
from tests.deep_machines import random_dbm


def make(**options) -> DBM:
    return random_dbm(("bernoulli", "ising", "bernoulli"), 3, offsets=True, **options)


def bits(*shape: int) -> torch.Tensor:
    return torch.bernoulli(torch.full((*shape, 3), 0.5)).double()


# --- shapes -------------------------------------------------------------------------------------


def test_shapes_and_support():
    dbm = make()
    assert dbm.batch_shape == () and dbm.event_shape == (3,) and dbm.event_dim == 1
    assert dbm.depth == 2 and dbm.sizes == (3, 3, 3)
    v = dbm.sample((5,))
    assert v.shape == (5, 3) and v.dtype == torch.float64 and not v.requires_grad
    assert bool(dbm.support.check(v).all()) and not dbm.has_rsample
    assert dbm.log_prob(v).shape == (5,) and dbm.log_prob(v[0]).shape == ()
    with pytest.raises(ValueError, match="support"):
        dbm.log_prob(torch.full((3,), 0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"broadcast|right-most"):
        dbm.log_prob(torch.zeros(2, dtype=torch.float64))


def test_expand_shares_parameters_and_repeats_values():
    dbm = make().normalize(0.3)
    larger = dbm.expand((4, 1)).expand((4, 2))
    assert larger.batch_shape == (4, 2) and larger.parameter_batch_shape == ()
    assert larger.weights[1] is dbm.weights[1] and dbm.batch_shape == ()
    v = bits(2)
    assert torch.equal(larger.log_prob(v), dbm.log_prob(v).expand(4, 2))
    assert larger.sample((3,)).shape == (3, 4, 2, 3)
    assert larger.bipartite().batch_shape == (4, 2)
    compact = larger.compact()
    assert compact.batch_shape == () and compact.log_partition is None
    with pytest.raises(ValueError, match="cannot expand"):
        larger.expand((1, 2))


def test_a_site_in_a_plate():
    dbm = make()
    dbm = dbm.normalize(exact_log_partition(dbm.bipartite()))
    data = bits(5)

    def model(observed=None):
        with pyro.plate("rows", 5):
            return pyro.sample("v", dbm, obs=observed)

    assert model().shape == (5, 3)
    trace = poutine.trace(model).get_trace(data)
    torch.testing.assert_close(trace.log_prob_sum(), dbm.log_prob(data).sum())
    scaled = poutine.scale(model, 2.0)
    torch.testing.assert_close(
        poutine.trace(scaled).get_trace(data).log_prob_sum(), 2 * dbm.log_prob(data).sum()
    )


# --- normaliser and guard -----------------------------------------------------------------------


def test_normalised_values():
    dbm = make()
    log_z = exact_log_partition(dbm.bipartite())
    exact = dbm.normalize(log_z)
    v = dbm.units[0].states(0, 8)
    # A bound of every log p(v): the sum is below one, but not by much.
    total = exact.log_prob(v).exp().sum().item()
    assert 0.8 < total < 1.0
    even = torch.cat([v.repeat_interleave(8, 0), dbm.units[2].states(0, 8).repeat(8, 1)], -1)
    assert exact.even_log_prob(dbm.split_even(even)).exp().sum().item() == pytest.approx(1.0)
    assert exact.bipartite().log_partition is exact.log_partition
    assert exact.normalize(None).log_partition is None and dbm.log_partition is None
    for same in (exact.tilt(v[0]), exact.posterior(v[0]), exact.clamp(v[3] > 0, v[3])):
        assert same.log_partition is None


def test_unnormalised_gradients_are_refused():
    dbm = make()
    dbm.weights[1].requires_grad_()
    v = bits(2)
    with pytest.raises(UnnormalizedGradientError, match=r"DBM.log_prob\(\).*log Z is not attached"):
        dbm.log_prob(v)
    with pytest.raises(UnnormalizedGradientError, match="attached log Z is a constant"):
        dbm.normalize(1.0).log_prob(v)
    with pytest.raises(UnnormalizedGradientError):
        dbm.even_log_prob([v, v])
    with torch.no_grad():
        assert not dbm.log_prob(v).requires_grad
    assert dbm.free_energy(v).requires_grad and dbm.bipartite().weight.requires_grad
    exact = dbm.normalize(exact_log_partition(dbm.bipartite()))
    (gradient,) = torch.autograd.grad(exact.log_prob(v).sum(), dbm.weights[1])
    assert bool(gradient.abs().max() > 0)
    detached = dbm.detach()
    assert not any(p.requires_grad for p in detached.parameters())
    assert torch.equal(detached.log_prob(v), -dbm.free_energy(v).detach())


def test_likelihood_ascent_learns():
    """The bound less the exact log Z, by autograd alone: the loss falls to the entropy of the data."""
    data = torch.tensor([[1.0, 1, 0], [0, 0, 1]]).double()
    torch.manual_seed(0)
    tensors = [0.5 * torch.randn(3, 4), 0.5 * torch.randn(4, 2)]
    tensors += [torch.zeros(n) for n in (3, 4, 2)]
    tensors = [x.double().requires_grad_() for x in tensors]
    optimizer = torch.optim.Adam(tensors, lr=0.1)
    for _ in range(50):
        dbm = DBM([units.Bernoulli(b) for b in tensors[2:]], tensors[:2])
        dbm = dbm.normalize(exact_log_partition(dbm.bipartite()))
        loss = -dbm.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0  # log 2 = 0.69; it starts above 2


# --- copies -------------------------------------------------------------------------------------


def test_copies_keep_everything():
    dbm = random_dbm(("bernoulli", "gaussian", "categorical"), (3, 2, 2), offsets=True)
    options = {"num_gibbs_steps": 5, "max_mean_field_updates": 77, "mean_field_tolerance": 1e-4}
    dbm = DBM(dbm.units, dbm.weights, offsets=dbm.offsets, **options)
    dbm = dbm.normalize(2.0).expand((4,))
    v = bits(4)
    for same in (
        pickle.loads(pickle.dumps(dbm)),
        copy.copy(dbm),
        copy.deepcopy(dbm),
        dbm.to(torch.float64),
        dbm.detach(),
        dbm.expand((4,)),
    ):
        assert type(same) is DBM and same.batch_shape == (4,)
        assert all(getattr(same, name) == value for name, value in options.items())
        assert torch.equal(same.log_prob(v), dbm.log_prob(v))
        assert torch.equal(same.log_partition, dbm.log_partition) and same._validate_args
    assert copy.deepcopy(dbm).weights[0] is not dbm.weights[0]
    off = DBM(dbm.units, dbm.weights, validate_args=False)
    for same in (off.to(torch.float32), off.bipartite(), off.tilt(v[0]), off.posterior(v[0])):
        assert not same._validate_args


def test_dtypes():
    dbm, v = make(), bits(4)
    single = dbm.to(torch.float32)
    assert single.log_prob(v.float()).dtype == torch.float32 == single.sample().dtype
    torch.testing.assert_close(single.log_prob(v).double(), dbm.log_prob(v), rtol=1e-5, atol=1e-5)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        x = v.to(dtype)
        assert torch.equal(dbm.log_prob(x), dbm.log_prob(v))
        assert torch.equal(dbm.energy([x, v, x]), dbm.energy([v, v, v]))
        assert torch.equal(dbm.field(1, [x, x]), dbm.field(1, [v, v]))
        clamped = dbm.clamp(torch.tensor([True, False, False]), x)
        assert clamped.weights[0].dtype == torch.float64
        assert torch.equal(dbm.posterior(x).units[0].natural_bias, dbm.posterior(v).units[0].bias)


def test_repr_offsets_and_parameters():
    dbm = make()
    text = repr(dbm.expand((2,)))
    assert text.startswith("DBM(units=[Bernoulli(num_units=3") and "batch_shape=(2,)" in text
    assert "unnormalised" in text and "unnormalised" not in repr(dbm.normalize(0.0))
    plain = DBM(dbm.units, dbm.weights)
    assert [o.tolist() for o in plain.offsets] == [[0.0] * 3] * 3
    assert len(plain.parameters()) == 5 and len(dbm.parameters()) == 8
    assert len(dbm.tilt(torch.zeros(3)).parameters()) == 9  # a constant


def test_log_prob_of_a_training_loop_does_not_warn():
    dbm = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            dbm.log_prob(bits(20))
