# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The likelihood of a deep belief network against enumeration of all its layers."""

import itertools

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.belief_network import belief_network_log_likelihood
from tests.distributions.families import uniform


def bits(number: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)), dtype=torch.float64)


def stack(*sizes: int) -> list[RBM]:
    torch.manual_seed(0)
    return [
        RBM(
            units.Bernoulli(uniform((low,), -1, 1)),
            units.Bernoulli(uniform((high,), -1, 1)),
            uniform((low, high), -1.5, 1.5),
            visible_offset=uniform((low,), 0, 1),
            hidden_offset=uniform((high,), 0, 1),
        )
        for low, high in itertools.pairwise(sizes)
    ]


def conditional(machine: RBM, given: Tensor, x: Tensor, upwards: bool) -> Tensor:
    """log p of every row of x given every row of the other layer, a table."""
    law = machine if upwards else machine.transpose()
    theta = law.hidden.theta(law.hidden_field(given))
    return theta @ x.T - torch.nn.functional.softplus(theta).sum(-1, keepdim=True)


def tables(machines: list[RBM], v: Tensor) -> tuple[Tensor, Tensor]:
    """log p(v, h1, h2) and log q(h1, h2 | v) of a network of three machines, shape (rows, 2^H1, 2^H2)."""
    h1, h2 = bits(3), bits(2)
    top = machines[2]
    log_top = -top.free_energy(h2) - exact_log_partition(top)
    down = conditional(machines[1], h2, h1, upwards=False).T + log_top
    log_p = conditional(machines[0], h1, v, upwards=False).T.unsqueeze(-1) + down
    up = conditional(machines[1], h1, h2, upwards=True)
    return log_p, conditional(machines[0], v, h1, upwards=True).unsqueeze(-1) + up


def test_one_machine_is_the_rbm():
    (machine,) = stack(4, 3)
    log_z = exact_log_partition(machine)
    got = belief_network_log_likelihood([machine], bits(4), log_z, num_samples=3)
    torch.testing.assert_close(got, machine.log_prob(bits(4)) - log_z)


def test_one_sample_has_the_variational_bound_as_its_mean():
    machines, v = stack(4, 3, 2, 2), bits(4)[[3, 9, 15]]
    log_p, log_q = tables(machines, v)
    bound = (log_q.exp() * (log_p - log_q)).sum((1, 2))
    log_z = exact_log_partition(machines[-1])
    draws = belief_network_log_likelihood(
        machines,
        v.repeat_interleave(20_000, 0),
        log_z,
        num_samples=1,
        generator=torch.Generator().manual_seed(0),
    ).reshape(3, -1)
    error = draws.std(1) / 20_000**0.5
    assert ((draws.mean(1) - bound).abs() < 6 * error).all()
    assert (bound < log_p.logsumexp((1, 2)) - 0.01).all()


def test_weights_have_the_likelihood_as_their_mean():
    machines, v = stack(4, 3, 2, 2), bits(4)[[0, 6]]
    expected = tables(machines, v)[0].logsumexp((1, 2)).exp()
    log_z = exact_log_partition(machines[-1])
    generator = torch.Generator().manual_seed(1)
    rows = v.repeat_interleave(20_000, 0)
    draws = belief_network_log_likelihood(machines, rows, log_z, num_samples=1, generator=generator)
    weights = draws.exp().reshape(2, -1)
    error = weights.std(1) / 20_000**0.5
    assert ((weights.mean(1) - expected).abs() < 6 * error).all()
    # Probabilities of all rows add up to one.
    every = tables(machines, bits(4))[0].logsumexp((0, 1, 2))
    torch.testing.assert_close(every, torch.zeros((), dtype=torch.float64))
    many = belief_network_log_likelihood(
        machines, v, log_z, num_samples=20_000, generator=generator
    )
    assert ((many.exp() - expected).abs() < 6 * error).all()


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda m, v: belief_network_log_likelihood([], v, 0.0), ValueError, "at least one"),
        (lambda m, v: belief_network_log_likelihood([None], v, 0.0), TypeError, "machine 0"),
        (lambda m, v: belief_network_log_likelihood(m[::-1], v, 0.0), ValueError, "visible ones"),
        (lambda m, v: belief_network_log_likelihood(m, v[:, :3], 0.0), ValueError, "data must"),
        (
            lambda m, v: belief_network_log_likelihood(m, v, 0.0, num_samples=0),
            ValueError,
            "num_samples",
        ),
        (
            lambda m, v: belief_network_log_likelihood([m[0].expand((2,)), m[1]], v, 0.0),
            ValueError,
            "batch shape",
        ),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make(stack(4, 3, 2), bits(4))


def test_families_that_do_not_fit_are_refused():
    bits = RBM(units.Bernoulli(torch.zeros(4)), units.Bernoulli(torch.zeros(3)), torch.zeros(4, 3))
    real = RBM(
        units.Gaussian(torch.zeros(3), torch.ones(3)),
        units.Bernoulli(torch.zeros(2)),
        torch.zeros(3, 2),
    )
    with pytest.raises(ValueError, match="states of one"):
        belief_network_log_likelihood([bits, real], torch.zeros(2, 4), 0.0)
    with pytest.raises(ValueError, match="outside"):
        belief_network_log_likelihood([bits], torch.full((2, 4), 0.5), 0.0)
