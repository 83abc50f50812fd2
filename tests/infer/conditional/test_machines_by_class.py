# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines of classes that were trained apart, against the machines themselves and brute force."""

import pytest
import torch

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    BayesClassifier,
    MachinesByClass,
    conditional_log_likelihood,
    conditional_log_partition,
    exact_log_partition,
)
from tests import brute_force
from tests.distributions.families import random_rbm, some_states, to_machine
from tests.infer.reference import log_partition

PAIRS = [
    ("bernoulli", "ising"),
    ("mixed", "bernoulli"),
    ("categorical", "bernoulli"),
    ("gaussian", "ising"),
    ("low_rank", "bernoulli"),
]
PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def some_machines(pair):
    # One without offsets among centred ones: they are taken as zero.
    return [random_rbm(pair, offsets=offsets) for offsets in (True, False, True)]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_bayes_rule_against_brute_force(pair):
    machines = some_machines(pair)
    model = MachinesByClass(machines)
    data = torch.as_tensor(some_states(to_machine(machines[0]).visible, 5))
    log_z = conditional_log_partition(model, model.contexts)
    columns = []
    for machine in map(to_machine, machines):
        density = -brute_force.free_energy(machine, data.double().numpy()).real
        columns.append(torch.as_tensor(density) - log_partition(machine))
    joint = torch.stack(columns, -1) + PRIOR.log()
    classifier = BayesClassifier(model, model.contexts, log_z, PRIOR.log())
    close(classifier.log_joint(data), joint)
    close(classifier.log_posterior(data), torch.log_softmax(joint, -1))
    rows = model.contexts[torch.tensor([2, 0, 1, 1, 2])]
    own = conditional_log_likelihood(model, data, rows, log_z, contexts=model.contexts)
    close(own, (joint - PRIOR.log())[torch.arange(5), rows.argmax(-1)])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_class_is_its_machine(pair):
    machines = some_machines(pair)
    model = MachinesByClass(machines)
    assert model.num_classes == 3
    order = torch.tensor([[2, 0], [1, 1]])
    dist = model.condition(model.contexts[order])
    assert dist.batch_shape == (2, 2)
    data = torch.as_tensor(some_states(to_machine(machines[0]).visible, 4))
    energy = dist.free_energy(data[:, None, None])
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        close(energy[:, *place], machines[order[place]].free_energy(data))
    assert model.condition(model.contexts[0]).batch_shape == ()


def test_annealing():
    machines = [random_rbm(("bernoulli", "bernoulli")) for _ in range(2)]
    model = MachinesByClass(machines)
    bracket = conditional_log_partition(
        model, model.contexts, "bracket", num_chains=200, num_temperatures=50, seed=0
    )
    exact = torch.stack([exact_log_partition(machine) for machine in machines])
    for side in (bracket.forward, bracket.reverse):
        assert bool(((side.value - exact).abs() < 6 * side.std_error).all())


def test_parameters_are_copied():
    weight = torch.zeros(4, 3, requires_grad=True)
    machine = BernoulliRBM(weight, torch.zeros(4), torch.zeros(3)).normalize(1.0)
    dist = MachinesByClass([machine, machine]).condition(torch.eye(2))
    assert not dist.weight.requires_grad
    with torch.no_grad():
        weight.add_(1.0)
    assert not bool(dist.weight.any())
    assert dist.log_prob(torch.zeros(4)).tolist() == pytest.approx([2.0794415, 2.0794415])


def bits(num_visible=4, num_hidden=3, dtype=torch.float64):
    zeros = [torch.zeros(n, dtype=dtype) for n in (num_visible, num_hidden)]
    return BernoulliRBM(torch.zeros(num_visible, num_hidden, dtype=dtype), *zeros)


def spins():
    layer = units.Ising(torch.zeros(4).double())
    return RBM(layer, units.Bernoulli(torch.zeros(3).double()), torch.zeros(4, 3).double())


@pytest.mark.parametrize(
    ("machines", "error", "message"),
    [
        (bits(), TypeError, "machines must be a list of RBMs, got "),
        ([bits(), None], TypeError, "machine 1 must be an RBM, got NoneType"),
        ([], ValueError, "machines must hold at least one RBM"),
        ([bits(), bits().expand((2,))], ValueError, "machine 1 has a batch shape"),
        (
            [bits().clamp(torch.tensor([True, False, False, False]), torch.ones(4))],
            ValueError,
            "machine 0 has been clamped",
        ),
        ([bits(), bits(5)], ValueError, "the visible layer of machine 1 is"),
        ([bits(), bits(4, 2)], ValueError, "the hidden layer of machine 1 is"),
        ([bits(), spins()], ValueError, "the visible layer of machine 1 is .*Ising"),
        ([bits(), bits(dtype=torch.float32)], ValueError, "machines must have one dtype"),
    ],
)
def test_what_is_no_list_of_equal_machines(machines, error, message):
    with pytest.raises(error, match=message):
        MachinesByClass(machines)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        ([1.0, 0.0], TypeError, "context must be a tensor, got list"),
        (torch.eye(3), ValueError, r"context must have shape \(..., 2\), got \(3, 3\)"),
        (torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ValueError, "must be one-hot; 1 of 2 are not"),
        (torch.tensor([0.5, 0.5]), ValueError, "must be one-hot; 1 of 1 are not"),
        (torch.tensor([0.0, torch.nan]), ValueError, "must be one-hot; 1 of 1 are not"),
    ],
)
def test_wrong_contexts(context, error, message):
    with pytest.raises(error, match=message):
        MachinesByClass([bits(), bits()]).condition(context)
