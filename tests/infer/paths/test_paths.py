# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Paths and ladders: densities, ratios and fields against the machines that they pass through."""

import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer.paths import GeometricPath, Ladder, MachinePath, Path, base_unit
from tests.distributions.families import ALL_PAIR_IDS, ALL_PAIRS, random_rbm

BETAS = [0.0, 0.3, 0.75, 1.0]


def make_path(kind: str, pair: tuple[str, str], batched: bool = False) -> Path:
    rbm = random_rbm(pair, offsets=True, batched=batched)
    if kind == "geometric":
        base = "uniform" if rbm.visible.num_states else None
        return GeometricPath(rbm, base_unit(rbm, base))
    others = [random_rbm(pair, offsets=True, batched=batched) for _ in range(2)]
    for other in others:
        other.visible = with_covariance(other.visible, rbm.visible)
        other.hidden = with_covariance(other.hidden, rbm.hidden)
    return MachinePath.from_checkpoints([*others, rbm])


def with_covariance(unit: units.Unit, like: units.Unit) -> units.Unit:
    """Correlated units on a path have one covariance."""
    if not isinstance(like, units.LowRankGaussian):
        return unit
    return like.from_mean(unit.parameters["loc"])


def some_states(rbm: RBM, shape: tuple[int, ...]) -> Tensor:
    bias = rbm.visible.neutral().natural_bias
    return rbm.visible.natural_sample(bias.expand(*shape, rbm.event_shape[0]))


@pytest.mark.parametrize("batched", [False, True], ids=["plain", "batched"])
@pytest.mark.parametrize("kind", ["geometric", "machines"])
@pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
def test_densities(pair: tuple[str, str], kind: str, batched: bool) -> None:
    """Ratios, constants, machines and ladders speak of the same densities."""
    path = make_path(kind, pair, batched)
    batch = path.batch_shape
    v = some_states(path.target, (5, *batch))
    densities = [path.machine(beta).log_prob(v) for beta in BETAS]
    for i in range(3):
        for before, after in ((i, i + 1), (i + 1, i)):
            fields = path.fields(v, BETAS[before])
            ratio, fields = path.log_ratio(v, fields, BETAS[before], BETAS[after])
            ratio = ratio + path.constant(BETAS[after]) - path.constant(BETAS[before])
            torch.testing.assert_close(ratio, densities[after] - densities[before])
            torch.testing.assert_close(fields, path.fields(v, BETAS[after]))
    check_ladder(path, path.ladder(BETAS))


@pytest.mark.parametrize("kind", ["geometric", "machines"])
def test_the_last_move_is_for_nothing_but_the_states(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, weights are the same, and the states are those that the last ratio was taken at."""
    path = make_path(kind, ("bernoulli", "ising")).with_generator(torch.Generator())
    v = some_states(path.target, (50,))
    moved: list[tuple[float, Tensor]] = []
    move = type(path).move

    def recorded(self: Path, fields: Tensor, beta: float) -> Tensor:
        new = move(self, fields, beta)
        moved.append((beta, new))
        return new

    monkeypatch.setattr(type(path), "move", recorded)
    results = []
    for last_move in (True, False):
        moved.clear()
        path.generator.manual_seed(3)
        results.append(path.anneal(v, BETAS, last_move=last_move))
        assert [beta for beta, _ in moved] == (BETAS[1:] if last_move else BETAS[1:-1])
        assert torch.equal(results[-1][0], moved[-1][1])
    assert torch.equal(results[0][1], results[1][1])


def check_ladder(path: Path, ladder: Ladder) -> None:
    batch = path.batch_shape
    states = some_states(path.target, (2, 4, *batch))
    fields = ladder.fields(states)
    # Element [c, l, k]: state l of chain c under level k.
    exact = torch.stack([path.machine(b).log_prob(states) for b in BETAS])
    torch.testing.assert_close(ladder.log_density_table(states, fields), exact)
    own = torch.stack([exact[level, :, level] for level in range(4)], 1)
    torch.testing.assert_close(ladder.log_density(states, fields), own)
    for level in ([1, 2, 3, 0], [3, 0, 1, 2]):
        moved = torch.stack([exact[k, :, l] - exact[l, :, l] for l, k in enumerate(level)], 1)
        got = ladder.level_log_ratio(states, fields, torch.tensor(level))
        torch.testing.assert_close(got, moved)
    partner = torch.tensor([0, 2, 1, 3])
    ratio, exchanged = ladder.swap_log_ratio(states, fields, partner)
    expected = exact[2, :, 1] + exact[1, :, 2] - exact[1, :, 1] - exact[2, :, 2]
    torch.testing.assert_close(ratio[:, 1], expected)
    torch.testing.assert_close(ratio[:, 2], expected)
    assert (ratio[:, 0] == 0).all() and (ratio[:, 3] == 0).all()
    if exchanged is None:
        exchanged = fields.index_select(1, partner)
    torch.testing.assert_close(exchanged, ladder.fields(states.index_select(1, partner)))


@pytest.mark.parametrize("kind", ["geometric", "machines"])
def test_shapes(kind: str) -> None:
    path = make_path(kind, ("bernoulli", "ising"), batched=True)
    ladder = path.ladder(BETAS)
    v = ladder.initial(Size((7,)))
    assert v.shape == (7, 4, 2, 3, 3)
    swept, fields = ladder.sweep(ladder.fields(v))
    assert swept.shape == v.shape and fields.shape == (7, 4, 2, 3, 2)
    assert path.sample_base(6).shape == (6, 2, 3, 3)
    assert path.log_partition_base.shape == (2, 3)
