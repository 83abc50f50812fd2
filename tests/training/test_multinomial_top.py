# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Deep machines with a multinomial layer on top: training against enumeration of the hidden layers."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm import distributions, nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig


def machine(total_count: int, centered: bool = True, **options) -> nn.DBM:
    """Three Gaussian pixels, three bits, counts of two states."""
    return nn.DBM(
        3,
        [3, 2],
        visible="gaussian",
        hidden=["bernoulli", "multinomial"],
        hidden_options=[{}, {"total_count": total_count}],
        centered=centered,
        seed=0,
        dtype=torch.float64,
        **options,
    )


def some_rows(number: int = 300) -> Tensor:
    """Two clusters, so that hidden units have something to say."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.5, 1.0, -1.0], [-1.5, -1.0, 1.0]], dtype=torch.float64)
    noise = torch.randn(number, 3, generator=generator, dtype=torch.float64)
    return centres[torch.arange(number) % 2] + 0.6 * noise


def hidden_states(total_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """All states of both hidden layers, with the log of the multinomial coefficient."""
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).double()
    first = torch.arange(total_count + 1, dtype=torch.float64)
    counts = torch.stack([first, total_count - first], 1)
    log_ways = math.lgamma(total_count + 1) - torch.lgamma(counts + 1).sum(1)
    h1 = bits.repeat_interleave(len(counts), 0)
    return h1, counts.repeat(len(bits), 1), log_ways.repeat(len(bits))


def exact_log_prob(dbm: distributions.DBM, v: Tensor) -> Tensor:
    """log p(v): the sum over hidden states, with the integral over v in closed form."""
    h1, h2, log_ways = hidden_states(dbm.units[2].total_count)
    weight1, weight2 = dbm.weights
    o0, o1, o2 = dbm.offsets
    loc, precision = (dbm.units[0].parameters[n] for n in ("loc", "precision"))
    c, d = dbm.units[1].natural_bias, dbm.units[2].natural_bias
    upper = h1 @ c + h2 @ d + log_ways + (((h1 - o1) @ weight2) * (h2 - o2)).sum(1)
    field = (h1 - o1) @ weight1.T
    square = 0.5 * (precision * (v - loc).square()).sum(1, keepdim=True)
    log_star = torch.logsumexp(-square + (v - o0) @ field.T + upper, 1)
    # Of a Gaussian with a field f about o0: integral of exp(-p (v - m)^2 / 2 + f (v - o0)).
    half = 0.5 * (2.0 * math.pi / precision).log().sum()
    integral = half + ((loc - o0) * field).sum(1) + 0.5 * (field.square() / precision).sum(1)
    return log_star - torch.logsumexp(integral + upper, 0)


def bound(dbm: distributions.DBM, v: Tensor) -> Tensor:
    """The variational bound of log p(v), normalised exactly."""
    return dbm.log_prob(v) - exact_log_partition(dbm.bipartite())


@pytest.mark.parametrize("total_count", [1, 6])
def test_the_bound_is_one(total_count):
    module = machine(total_count, weight_scale=0.5).init_from_data(some_rows())
    dbm, v = module().detach(), some_rows(20)
    exact = exact_log_prob(dbm, v)
    gap = exact - bound(dbm, v)
    assert bool((gap >= -1e-9).all()) and 1e-4 < float(gap.max()) < 2.0
    # The reference and the package sum the same hidden states.
    log_star = exact_log_partition(dbm.posterior(v).bipartite())
    expected = exact + exact_log_partition(dbm.bipartite())
    torch.testing.assert_close(log_star, expected, rtol=1e-9, atol=1e-9)


def train(module: nn.DBM, rate: float, epochs: int = 30) -> nn.DBM:
    config = TrainerConfig(
        num_epochs=epochs,
        batch_size=100,
        learning_rate=rate,
        persistent=True,
        num_chains=50,
        mean_field_updates=30,
        mean_field_tolerance=1e-3,
        metrics=(),
        seed=0,
        progress=False,
    )
    Trainer(module, config).fit(some_rows())
    return module


@pytest.mark.parametrize("total_count", [1, 12])
def test_training_raises_likelihood_and_bound(total_count):
    rows = some_rows()
    module = machine(total_count, weight_scale=0.05).init_from_data(rows)
    before = module().detach()
    start = exact_log_prob(before, rows).mean(), bound(before, rows).mean()
    after = train(module, 0.05)().detach()
    end = exact_log_prob(after, rows).mean(), bound(after, rows).mean()
    assert end[0] > start[0] + 0.2 and end[1] > start[1] + 0.2
    # What the bound loses stays a small part of what was gained.
    assert 0.0 <= end[0] - end[1] < 0.5 * (end[0] - start[0])


def test_offsets_keep_the_total_input_small():
    """Counts of M draws have a common part M / K, which without offsets is a second bias of the layer below
    with M^2 / K times its rate: the same rate of learning makes the total input swing."""
    swings = {}
    for centered in (True, False):
        module = machine(200, centered, weight_scale=0.001).init_from_data(some_rows())
        train(module, 0.02, epochs=3)
        common = module.weights[1].detach().mean(1) * 200
        swings[centered] = float(common.abs().max())
    assert swings[True] < 2.0 and swings[False] > 5.0 * swings[True]
