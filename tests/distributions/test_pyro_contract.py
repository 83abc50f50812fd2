# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What Pyro demands of every distribution (its own contract tests, in our words)."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch.distributions import constraints

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM, IsingRBM, units
from tests.distributions.families import FAMILIES, random_rbm, random_unit, uniform


def preset_arguments(cls: type, batch: tuple[int, ...]) -> dict[str, torch.Tensor]:
    arguments = {"weight": uniform((*batch, 3, 2), -1, 1), "hidden_bias": uniform((2,), -1, 1)}
    if cls is GaussianBernoulliRBM:
        arguments |= {"loc": uniform((3,), -1, 1), "precision": uniform((3,), 1, 2)}
    else:
        arguments |= {"visible_bias": uniform((3,), -1, 1)}
    return arguments


PRESETS = {
    cls.__name__: lambda batch, cls=cls: cls(**preset_arguments(cls, batch))
    for cls in (BernoulliRBM, IsingRBM, GaussianBernoulliRBM)
}
MACHINES = PRESETS | {
    family: lambda batch, family=family: RBM(
        random_unit(family, batch),
        random_unit("bernoulli"),
        uniform((random_unit(family).size, 3), -1, 1),
    )
    for family in FAMILIES
}
every_machine = pytest.mark.parametrize("make", MACHINES.values(), ids=MACHINES.keys())
every_batch = pytest.mark.parametrize("batch", [(), (2,), (3, 2)], ids=str)


@every_machine
@every_batch
def test_support(make, batch):
    d = make(batch)
    assert d.batch_shape == batch and d.event_dim == 1
    assert d.support.event_dim == d.event_dim
    value = d.sample((5,))
    assert d.support.check(value).shape == (5, *batch)
    assert bool(d.support.check(value).all())
    assert d.support.is_discrete == d.visible.is_discrete
    assert not d.has_rsample and value.dtype == torch.float64 and not value.requires_grad


@pytest.mark.parametrize("cls", [BernoulliRBM, IsingRBM, GaussianBernoulliRBM])
@every_batch
def test_infer_shapes(cls, batch):
    arguments = preset_arguments(cls, batch)
    d = cls(**arguments)
    inferred = cls.infer_shapes(**{name: value.shape for name, value in arguments.items()})
    assert inferred == (d.batch_shape, d.event_shape)
    assert set(arguments) <= set(cls.arg_constraints)


def test_infer_shapes_broadcasts_biases():
    shapes = {"weight": (5, 1, 3, 2), "visible_bias": (4, 3), "hidden_bias": (2,)}
    assert BernoulliRBM.infer_shapes(**shapes) == ((5, 4), (3,))


@every_machine
@every_batch
def test_log_prob_shapes(make, batch):
    d = make(batch)
    assert d.log_prob(d.sample()).shape == batch
    assert d.log_prob(d.sample((4,))).shape == (4, *batch)
    one = d.sample()[(0,) * len(batch)]
    assert d.log_prob(one).shape == batch  # one value for all elements
    column = one.reshape((1,) * len(batch) + (-1,)).expand((7, *(1,) * len(batch), -1))
    assert d.log_prob(column).shape == (7, *batch)
    expected = torch.stack([d.log_prob(row) for row in column])
    torch.testing.assert_close(d.log_prob(column), expected)
    assert d.shape((4,)) == (4, *batch, *d.event_shape)


@every_machine
def test_wrong_shapes_are_refused(make):
    d = make((2,))
    value = d.sample()
    with pytest.raises(ValueError, match="event"):
        d.log_prob(value[0, 0])
    with pytest.raises(ValueError, match=r"broadcast|right-most size"):
        d.log_prob(value[..., :-1])
    with pytest.raises(ValueError, match=r"not broadcastable|broadcast"):
        d.log_prob(value[:1].expand(3, -1))


@every_machine
@every_batch
def test_expand_by(make, batch):
    d = make(batch)
    larger = d.expand_by((4, 2))
    assert larger.batch_shape == (4, 2, *batch)
    value = larger.sample((3,))
    assert value.shape == (3, 4, 2, *batch, *d.event_shape)
    small = d.sample()
    torch.testing.assert_close(
        larger.log_prob(small), d.log_prob(small).expand(4, 2, *batch), rtol=0, atol=0
    )
    torch.testing.assert_close(larger.log_prob(value), d.log_prob(value), rtol=0, atol=0)


@every_machine
@every_batch
def test_expand_new_dim(make, batch):
    d = make(batch)
    larger = d.expand((5, *batch))
    value = d.sample()
    assert larger.sample().shape == (5, *batch, *d.event_shape)
    assert larger.support.event_dim == 1 and type(larger) is type(d)
    torch.testing.assert_close(
        larger.log_prob(value), d.log_prob(value).expand(5, *batch), rtol=0, atol=0
    )


@every_machine
def test_expand_existing_dim(make):
    d = make((1, 2))
    larger = d.expand((6, 2))
    assert larger.batch_shape == (6, 2) and larger.sample().shape[:2] == (6, 2)
    value = d.sample()
    torch.testing.assert_close(
        larger.log_prob(value), d.log_prob(value).expand(6, 2), rtol=0, atol=0
    )


@every_machine
def test_subsequent_expands(make):
    d = make((2,))
    twice = d.expand((3, 2)).expand((4, 3, 2))
    assert twice.batch_shape == (4, 3, 2) and twice.sample().shape == (4, 3, 2, *d.event_shape)
    value = d.sample()
    torch.testing.assert_close(twice.log_prob(value), d.log_prob(value).expand(4, 3, 2))


@every_machine
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1), ()])
def test_expand_errors(make, shape):
    with pytest.raises((ValueError, RuntimeError)):
        make((2,)).expand(shape)


@every_machine
def test_expand_shares_parameters(make):
    d = make(())
    larger = d.expand((10**6,))
    for mine, theirs in zip(d.parameters(), larger.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr() and mine.shape == theirs.shape
    assert larger.parameter_batch_shape == d.parameter_batch_shape
    assert d.batch_shape == ()  # the original is as it was


@every_machine
def test_expand_keeps_settings_and_log_partition(make):
    d = make((2,)).normalize(torch.tensor([0.5, 0.7], dtype=torch.float64))
    larger = d.expand((3, 2))
    assert larger._validate_args and larger.visible is d.visible
    value = d.sample()
    torch.testing.assert_close(larger.log_prob(value), d.log_prob(value).expand(3, 2))
    off = RBM(d.visible, d.hidden, d.weight, validate_args=False)
    assert off.expand((3, 2))._validate_args is False


def test_expand_keeps_the_gradient_of_log_partition():
    weight = torch.randn(3, 2).requires_grad_()
    d = BernoulliRBM(weight, torch.zeros(3), torch.zeros(2)).normalize(weight.sum())
    value = torch.ones(3)
    (expected,) = torch.autograd.grad(d.log_prob(value), weight)
    for same in (d.expand((4,)), copy.copy(d)):
        assert same.log_partition.requires_grad
        (got,) = torch.autograd.grad(same.log_prob(value).mean(), weight)
        torch.testing.assert_close(got, expected)


@every_machine
def test_mask(make, monkeypatch):
    d = make((2,))
    value = d.sample((3,))
    mask = torch.tensor([True, False])
    expected = torch.where(mask, d.log_prob(value), torch.zeros(()).double())
    torch.testing.assert_close(d.mask(mask).log_prob(value), expected)
    assert d.mask(True).log_prob(value).equal(d.log_prob(value))

    def bomb(*args):
        raise AssertionError("the energy of a masked site was evaluated")

    monkeypatch.setattr(type(d), "free_energy", bomb)
    assert d.mask(False).log_prob(value).eq(0).all()
    assert d.expand((3, 2)).mask(False).log_prob(value).shape == (3, 2)
    with pytest.raises(AssertionError, match="was evaluated"):
        d.mask(True).log_prob(value)


@every_machine
def test_to_event(make):
    d = make((3, 2))
    inner = d.to_event(1)
    assert inner.batch_shape == (3,) and inner.event_shape == (2, *d.event_shape)
    value = inner.sample((4,))
    torch.testing.assert_close(inner.log_prob(value), d.log_prob(value).sum(-1))
    assert inner.support.event_dim == 2
    assert inner.expand((5, 3)).log_prob(value[0]).shape == (5, 3)
    assert d.to_event(2).batch_shape == ()


@every_machine
def test_plates_with_subsampling_and_scale(make):
    d = make(()).normalize(1.5)
    data = d.sample((10,))

    def model():
        with pyro.plate("rows", 10, subsample=torch.tensor([1, 4, 7])) as index:
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("v", d, obs=data[index])

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["v"]
    assert site["fn"].batch_shape == (3,)
    torch.testing.assert_close(site["unscaled_log_prob"], d.log_prob(data[[1, 4, 7]]))
    torch.testing.assert_close(trace.log_prob_sum(), 2 * 10 / 3 * d.log_prob(data[[1, 4, 7]]).sum())


@every_machine
def test_sample_in_nested_plates(make):
    d = make(())
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2, dim=-1):
        value = pyro.sample("v", d)
    assert value.shape == (3, 2, *d.event_shape)


@every_machine
@every_batch
def test_enumerate_support(make, batch):
    d = make(batch)
    if not d.visible.is_discrete:
        assert not d.has_enumerate_support
        with pytest.raises(NotImplementedError, match=r"at most 1024 .* infinitely many"):
            d.enumerate_support()
        return
    assert d.has_enumerate_support
    count = d.visible.num_states
    ones = (1,) * len(batch)
    narrow, wide = d.enumerate_support(expand=False), d.enumerate_support()
    assert narrow.shape == (count, *ones, *d.event_shape)
    assert wide.shape == (count, *batch, *d.event_shape)
    assert torch.equal(wide, narrow.expand(wide.shape))
    assert len(set(map(tuple, narrow.reshape(count, -1).tolist()))) == count
    assert d.log_prob(narrow).shape == (count, *batch)
    grown = d.expand((4, *batch))
    assert grown.enumerate_support().shape == (count, 4, *batch, *d.event_shape)
    assert grown.enumerate_support(False).shape == (count, 1, *ones, *d.event_shape)


def test_enumerate_support_has_a_limit():
    def machine(n):
        return BernoulliRBM(torch.zeros(n, 2), torch.zeros(n), torch.zeros(2))

    assert machine(10).enumerate_support().shape == (1024, 10)
    assert not machine(11).has_enumerate_support
    with pytest.raises(NotImplementedError, match=r"at most 1024 states .* this one has 2048"):
        machine(11).enumerate_support()


def test_parallel_enumeration_sums_the_site_out():
    d = random_rbm(("bernoulli", "ising"))
    log_z = torch.logsumexp(d.log_prob(d.enumerate_support()), 0)
    d = d.normalize(log_z)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def model():
        with pyro.plate("rows", 2):
            v = pyro.sample("v", d, infer={"enumerate": "parallel"})
            noise = dist.Normal((v * slope).sum(-1), torch.ones(()).double())
            pyro.sample("y", noise, obs=torch.tensor([0.3, -1.0], dtype=torch.float64))

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    states = d.enumerate_support()
    noise = dist.Normal((states * slope).sum(-1, keepdim=True), torch.ones(()).double())
    y = torch.tensor([0.3, -1.0], dtype=torch.float64)
    terms = d.log_prob(states).unsqueeze(-1) + noise.log_prob(y)
    assert loss == pytest.approx(-torch.logsumexp(terms, 0).sum().item(), abs=1e-9)


@every_machine
def test_pickle_save_and_copies(make):
    d = make((2,)).normalize(torch.tensor([0.5, 0.7], dtype=torch.float64)).expand((3, 2))
    value = d.sample()
    buffer = io.BytesIO()
    torch.save(d, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for same in (pickle.loads(pickle.dumps(d)), loaded, copy.deepcopy(d), copy.copy(d)):
        assert type(same) is type(d) and same.batch_shape == (3, 2)
        assert torch.equal(same.log_prob(value), d.log_prob(value))
        assert same.sample().shape == value.shape
    assert copy.deepcopy(d).weight.data_ptr() != d.weight.data_ptr()


def test_a_log_partition_that_is_no_leaf_is_pickled_by_value():
    weight = torch.randn(3, 2).requires_grad_()
    d = BernoulliRBM(weight, torch.zeros(3), torch.zeros(2)).normalize(weight.sum())
    for same in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        assert torch.equal(same.log_partition, d.log_partition.detach())
        assert not same.log_partition.requires_grad
    assert d.log_partition.requires_grad  # the original keeps its gradient


@every_machine
def test_validation_on_and_off(make):
    outside = torch.full(make(()).event_shape, torch.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match="support"):
        make(()).log_prob(outside)
    with pyro.validation_enabled(False):
        make(()).log_prob(outside)
    assert make(())._validate_args


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_machine
def test_dtypes(make, dtype):
    d = make((2,)).to(dtype=dtype)
    value = d.sample((3,))
    assert value.dtype == dtype and d.log_prob(value).dtype == dtype
    assert d.normalize(0.25).log_partition.dtype == dtype
    exact = d.to(dtype=torch.float64).log_prob(value.double())
    torch.testing.assert_close(d.log_prob(value).double(), exact, rtol=1e-5, atol=1e-5)


@every_machine
def test_log_prob_is_deterministic(make):
    d = make(())
    value = d.sample((3,))
    assert torch.equal(d.log_prob(value), d.expand((3,)).log_prob(value))
    assert torch.equal(d.log_prob(value), d.log_prob(value))


def test_svi_learns_from_a_normalised_machine():
    """A smoke test of the whole way: param, plate, observed site, Trace_ELBO."""
    data = torch.tensor([[1.0, 1.0, 0.0]]).expand(20, 3)

    def model():
        bias = pyro.param("bias", torch.zeros(3), constraint=constraints.real)
        machine = BernoulliRBM(torch.zeros(3, 1), bias, torch.zeros(1))
        log_z = torch.logsumexp(-machine.free_energy(machine.enumerate_support()), 0)
        with pyro.plate("rows", 20):
            pyro.sample("v", machine.normalize(log_z), obs=data)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[0] == pytest.approx(20 * 3 * torch.tensor(2.0).log().item(), rel=1e-4)
    assert losses[-1] < 5
    assert pyro.param("bias")[:2].min() > 2 and pyro.param("bias")[2] < -2


def test_repr_and_aliases():
    d = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.ones(2))
    assert "unnormalised" in repr(d) and "normalised" in repr(d.normalize(0.0))
    assert d.log_partition is None and d.log_partition_function is None
    assert d.normalize(2.0).log_partition_function.item() == 2.0
    assert torch.equal(d.visible_bias, torch.zeros(3)) and torch.equal(d.hidden_bias, torch.ones(2))
    assert torch.equal(d.visible_offset, torch.zeros(3))
    assert torch.equal(d.hidden_offset, torch.zeros(2))
    g = GaussianBernoulliRBM(torch.zeros(3, 2), torch.ones(3), 2 * torch.ones(3), torch.zeros(2))
    assert torch.equal(g.loc, torch.ones(3)) and torch.equal(g.precision, 2 * torch.ones(3))
    assert isinstance(g.visible, units.Gaussian) and isinstance(g.hidden, units.Bernoulli)


@every_machine
def test_turned_and_cast_copies_keep_everything(make):
    d = make((2,)).normalize(torch.tensor([0.5, 0.7], dtype=torch.float64)).expand((3, 2))
    value = d.sample()
    for same in (d.transpose().transpose(), d.to(torch.float64)):
        assert same.batch_shape == (3, 2) and torch.equal(same.log_partition, d.log_partition)
        torch.testing.assert_close(same.log_prob(value), d.log_prob(value))
        with pytest.raises(ValueError, match="support"):
            same.log_prob(torch.full_like(value, torch.nan))
        assert same.num_gibbs_steps == d.num_gibbs_steps
    off = RBM(d.visible, d.hidden, d.weight, validate_args=False)
    assert not off.transpose()._validate_args and not off.to(torch.float64)._validate_args
    assert d.transpose().log_partition is d.log_partition  # one Z of both layers


@every_machine
def test_compact_undoes_expand(make):
    d = make((1, 2)).normalize(1.0)
    compact = d.expand((5, 4, 2)).compact()
    assert compact.batch_shape == (1, 2) and compact.log_partition is None
    assert compact.weight is d.weight and d.log_partition is not None


@every_machine
def test_normalized_log_prob(make):
    d = make((2,))
    value, log_z = d.sample((3,)), torch.tensor(0.3, dtype=torch.float64)
    expected = d.normalize(log_z).log_prob(value)
    assert torch.equal(d.normalized_log_prob(value, log_z), expected)
    assert torch.equal(d.normalized_log_prob(value, None), d.log_prob(value))
    d.weight.requires_grad_()  # gradients are the caller's business here
    assert d.normalized_log_prob(value, log_z).requires_grad
    with pytest.raises(ValueError, match="support"):
        d.normalized_log_prob(torch.full_like(value, torch.nan), log_z)
