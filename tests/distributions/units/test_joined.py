# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Several layers as one: blocks of one family melt, and nothing else changes."""

import pytest
import torch

from pyro_ebm.distributions import units
from pyro_ebm.distributions.units.joined import join_units
from tests.distributions.families import ALL_FAMILIES, random_unit

PAIRS = [(a, b) for a in ALL_FAMILIES for b in ALL_FAMILIES]
SEPARABLE = ("bernoulli", "ising", "categorical", "gaussian", "relu")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batched"])
def test_a_joined_layer_is_its_parts(pair, batch):
    first, second = random_unit(pair[0], batch), random_unit(pair[1])
    joined = join_units([first, second])
    assert joined.size == first.size + second.size and joined.batch_shape == batch
    field = torch.randn(5, *batch, joined.size, dtype=torch.float64)
    fields = field.split([first.size, second.size], -1)
    x = joined.sample(field)
    parts = x.split([first.size, second.size], -1)
    pairs = [
        (joined.energy(x), first.energy(parts[0]) + second.energy(parts[1])),
        (
            joined.log_partition(field),
            first.log_partition(fields[0]) + second.log_partition(fields[1]),
        ),
        (joined.mean(field), torch.cat([first.mean(fields[0]), second.mean(fields[1])], -1)),
    ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert bool(joined.support.check(x).all())
    tilted, constant = joined.tilt(field)
    energy = joined.energy(x) - (field * x).sum(-1) - constant
    torch.testing.assert_close(tilted.energy(x), energy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_one_family_is_one_layer(family):
    joined = join_units([random_unit(family), random_unit(family)])
    assert isinstance(joined, units.Mixed) == (family not in SEPARABLE)
    if family in SEPARABLE:
        assert joined.num_units == 2 * random_unit(family).num_units
        assert type(joined) is type(random_unit(family))


def test_runs_of_one_family_melt_also_inside_mixed_layers():
    bits, spins = units.Bernoulli(torch.ones(2)), units.Ising(torch.zeros(3))
    labels = units.Mixed([bits, units.Categorical(torch.zeros(2, 4))])
    joined = join_units([bits, labels, units.Categorical(torch.ones(1, 4)), spins, bits])
    kinds = [(type(block).__name__, block.num_units) for block in joined.blocks]
    assert kinds == [("Bernoulli", 4), ("Categorical", 3), ("Ising", 3), ("Bernoulli", 2)]
    # Groups of other sizes are other layers.
    other = join_units([units.Categorical(torch.zeros(2, 4)), units.Categorical(torch.zeros(2, 3))])
    assert [block.cardinality for block in other.blocks] == [4, 3]
    # So are counts: the draws of one are not those of another.
    counts = join_units(
        [units.Multinomial(torch.zeros(3), 2), units.Multinomial(torch.zeros(3), 2)]
    )
    assert len(counts.blocks) == 2


def test_one_layer_is_itself():
    layer = units.Ising(torch.zeros(3))
    assert join_units([layer]) is layer


def test_parameters_keep_the_axes_that_they_had():
    """Rows of locations must not repeat the precision by row: it is that of all of them."""
    first = units.Gaussian(torch.zeros(7, 2), torch.ones(2))
    joined = join_units([first, units.Gaussian(torch.zeros(3), torch.full((3,), 2.0))])
    assert joined.loc.shape == (7, 5) and joined.precision.shape == (5,)
    assert joined.precision.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    # A number for all units of a layer is repeated along the layer alone.
    shared = units.Gaussian(torch.zeros(2), torch.tensor(3.0))
    joined = join_units([shared, units.Gaussian(torch.zeros(4, 1, 1), torch.ones(5, 1))])
    assert joined.loc.shape == (4, 1, 3) and joined.precision.shape == (5, 3)
    assert joined.batch_shape == (4, 5)


def test_gradients_reach_both():
    biases = [torch.zeros(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    joined = join_units([units.Bernoulli(b) for b in biases])
    joined.log_partition().backward()
    assert biases[0].grad.tolist() == [0.5, 0.5] and bool((biases[1].grad > 0.7).all())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        join_units([])
    with pytest.raises(ValueError, match="one dtype"):
        join_units([units.Ising(torch.zeros(2)), units.Ising(torch.zeros(2).double())])
    with pytest.raises(ValueError, match="do not broadcast"):
        join_units([units.Ising(torch.zeros(2, 2)), units.Bernoulli(torch.zeros(3, 2))])
    with pytest.raises(ValueError, match="do not broadcast"):
        join_units([units.Ising(torch.zeros(2, 2)), units.Ising(torch.zeros(3, 2))])
