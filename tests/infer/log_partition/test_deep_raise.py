# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""RAISE of deep machines against the annealing model's own probabilities of the visible layer."""

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import LogLikelihoodEstimate, compare_log_partition, raise_log_likelihood
from pyro_ebm.infer.paths import GeometricPath
from tests.deep_machines import random_dbm
from tests.infer.reference import Z_LIMIT, z_score

#: Few temperatures, unevenly spread: the annealing model is far from the machine.
BETAS = torch.tensor([0.0, 0.4, 1.0])


def states_of(machine: RBM) -> Tensor:
    assert machine.visible.num_states is not None
    return machine.visible.states(0, machine.visible.num_states)


def annealing_model(dbm: DBM) -> Tensor:
    """Probability of every visible state at the end of a forward run, from matrices over all states of
    the even layers."""
    machine = dbm.bipartite()
    path = GeometricPath(machine, machine.visible)
    x, h = states_of(machine), states_of(machine.transpose())
    p = torch.softmax(path.machine(0.0).log_prob(x), 0)
    for beta in BETAS[1:].tolist():
        level = path.machine(beta)
        to_odd = level.hidden_given(x.unsqueeze(1)).log_prob(h).exp()
        p = p @ to_odd @ level.visible_given(h.unsqueeze(1)).log_prob(x).exp()
    v = visible_states(dbm)
    same = (dbm.split_even(x)[0].unsqueeze(0) == v.unsqueeze(1)).all(-1)
    return same.to(p) @ p


def visible_states(dbm: DBM) -> Tensor:
    assert dbm.units[0].num_states is not None
    return dbm.units[0].states(0, dbm.units[0].num_states)


@pytest.mark.parametrize(
    "families, sizes",
    [
        (("bernoulli", "bernoulli", "bernoulli"), (3, 2, 2)),
        (("ising", "bernoulli", "categorical", "bernoulli"), (3, 2, 1, 2)),
        (("bernoulli", "ising", "bernoulli", "bernoulli", "ising"), (2, 2, 2, 1, 2)),
    ],
)
def test_weights_are_unbiased(
    families: tuple[str, ...], sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dbm = random_dbm(families, sizes, offsets=True, scale=3.0)
    recorded: list[Tensor] = []
    original = LogLikelihoodEstimate.from_log_weights

    def record(log_weights: Tensor, *arguments: object) -> LogLikelihoodEstimate:
        recorded.append(log_weights)
        return original(log_weights, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LogLikelihoodEstimate, "from_log_weights", record)
    v = visible_states(dbm)
    estimate = raise_log_likelihood(
        dbm, v, num_rows=None, num_chains=10_000, schedule=BETAS, chunk_size=100_000, seed=1
    )
    p = annealing_model(dbm)
    torch.testing.assert_close(p.sum(), torch.ones_like(p.sum()))
    assert torch.equal(estimate.rows, torch.arange(len(v)))
    weights = recorded[0].exp().unbind(1)
    assert max(abs(z_score(w, q.item())) for w, q in zip(weights, p, strict=True)) < Z_LIMIT


def test_log_z_from_bounds_is_no_estimate() -> None:
    """The bounds of rows are too low, and so would be a log Z made of them."""
    dbm = random_dbm(("bernoulli",) * 3, (3, 2, 2))
    v = visible_states(dbm)
    estimate = raise_log_likelihood(dbm, v, num_temperatures=5, seed=0)
    assert estimate.log_partition.side is None
    assert any("mean-field" in flag for flag in estimate.log_partition.flags)
    with pytest.raises(ValueError, match='"raise" gives no log Z of a DBM'):
        compare_log_partition(dbm, ["raise"], data=v)


def test_the_other_methods_take_deep_machines() -> None:
    from pyro_ebm.infer import exact_log_partition

    torch.manual_seed(0)
    dbm = random_dbm(("bernoulli", "ising", "bernoulli"), (3, 2, 2), scale=1.5)
    log_z = exact_log_partition(dbm)
    found = compare_log_partition(
        dbm, ["ais", "reverse-ais", "bidirectional", "bar"], budget=10_000, side="odd", seed=0
    )
    for estimate in found.estimates.values():
        assert abs(estimate.value - log_z) < Z_LIMIT * estimate.std_error
        assert estimate.settings["summed_out"] == [0, 2]
