# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical prior of classes: its program and its conditionals against quadrature and enumeration."""

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

F64 = torch.float64
#: Log of a variance or precision, and a mean: the trapezium rule is exact to rounding on smooth tails.
LOGS = torch.linspace(-16.0, 8.0, 481, dtype=F64)
LINE = torch.linspace(-14.0, 14.0, 561, dtype=F64)


@pytest.fixture
def program(load: Any) -> Any:
    return load("hierarchical_model")


@pytest.fixture
def laws(load: Any) -> Any:
    return load("hierarchical_laws")


def step(grid: Tensor) -> float:
    return math.log((grid[1] - grid[0]).item())


def prior_of(program: Any) -> tuple[Tensor, Tensor]:
    """Of q; of plain numbers a law would be one of float32."""
    own = torch.tensor(program.VARIANCE_SHAPE, dtype=F64)
    return own, own


def rows_of(seed: int, counts: list[int], dim: int) -> tuple[Tensor, Tensor]:
    """Images of classes with different means and variances."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centre = torch.randn(len(counts), dim, generator=generator, dtype=F64)
    scale = 0.5 + torch.rand(len(counts), dim, generator=generator, dtype=F64)
    noise = torch.randn(len(labels), dim, generator=generator, dtype=F64)
    return centre[labels] + scale[labels] * noise, labels


# --- laws with the super-class summed out ----------------------------------------------------------


def test_shared_gamma_is_the_integral(laws: Any) -> None:
    torch.manual_seed(0)
    groups, shape, prior = (
        torch.tensor([0, 2, 0, 0]),
        torch.tensor(1.7, dtype=F64),
        torch.tensor(2.5, dtype=F64),
    )
    value = torch.rand(4, 2, dtype=F64) * 3.0 + 0.1
    own = laws.SharedGamma(groups, 3, shape, prior.expand(2))
    q = LOGS.exp()
    expected = torch.zeros((), dtype=F64)
    for s, d in itertools.product((0, 2), range(2)):
        inner = dist.Gamma(prior, prior).log_prob(q) + LOGS
        for k in (groups == s).nonzero()[:, 0]:
            inner = inner + dist.Gamma(shape, shape * q).log_prob(value[k, d])
        expected = expected + inner.logsumexp(0) + step(LOGS)
    assert abs(own.log_prob(value) - expected) < 1e-9


def test_shared_normal_is_the_integral(laws: Any) -> None:
    torch.manual_seed(1)
    groups, value = torch.tensor([1, 0, 1, 1]), torch.randn(4, 2, dtype=F64)
    precision, prior = torch.rand(4, 2, dtype=F64) * 3.0 + 0.2, torch.tensor([0.6, 2.0], dtype=F64)
    own = laws.SharedNormal(groups, 2, precision, prior)
    expected = torch.zeros((), dtype=F64)
    for s, d in itertools.product(range(2), range(2)):
        inner = dist.Normal(0.0, prior[d].rsqrt()).log_prob(LINE)
        for k in (groups == s).nonzero()[:, 0]:
            inner = inner + dist.Normal(LINE, precision[k, d].rsqrt()).log_prob(value[k, d])
        expected = expected + inner.logsumexp(0) + step(LINE)
    assert abs(own.log_prob(value) - expected) < 1e-9


def test_many_groupings_at_once(laws: Any) -> None:
    """What DiscreteGibbs needs: a batch of assignments, and copies of plates."""
    torch.manual_seed(2)
    groups = torch.tensor(list(itertools.product(range(2), repeat=3)))
    precision, prior = torch.rand(3, 2, dtype=F64) + 0.2, torch.ones(2, dtype=F64)
    shape = torch.tensor(2.0, dtype=F64)
    for make in (
        lambda g: laws.SharedGamma(g, 2, shape, prior),
        lambda g: laws.SharedNormal(g, 2, precision, prior),
    ):
        together = make(groups)
        value = make(groups[0]).sample()
        single = torch.stack([make(g).log_prob(value) for g in groups])
        assert together.batch_shape == (8,) and together.sample().shape == (8, 3, 2)
        torch.testing.assert_close(together.log_prob(value), single, rtol=0.0, atol=1e-12)
        wide = make(groups[3]).expand((5,))
        assert wide.sample((4,)).shape == (4, 5, 3, 2)
        torch.testing.assert_close(wide.log_prob(value), single[3].expand(5), rtol=0.0, atol=1e-12)


def test_draws_have_their_moments(laws: Any) -> None:
    """Rows of a group share its draw, those of others do not; limits are 6 standard errors."""
    torch.manual_seed(3)
    groups, n, shape = torch.tensor([0, 0, 1]), 20_000, torch.tensor(2.0, dtype=F64)
    prior = torch.tensor([3.0], dtype=F64)
    logs = laws.SharedGamma(groups, 2, shape, prior).sample((n,))[..., 0].log()
    precision = torch.tensor([[2.0], [2.0], [0.5]], dtype=F64)
    normal = laws.SharedNormal(groups, 2, precision, prior).sample((n,))[..., 0]
    digamma, trigamma = torch.special.digamma, lambda x: torch.special.polygamma(1, x)
    mean = digamma(shape) - shape.log() - digamma(prior) + prior.log()
    expected = (
        (logs, mean.expand(3), trigamma(shape).expand(3), trigamma(prior)),
        (normal, torch.zeros(3, dtype=F64), 1.0 / precision[:, 0], 1.0 / prior),
    )
    for draws, mean, within, shared in expected:
        off = draws - mean
        assert (off.mean(0).abs() < 6.0 * off.std(0) / n**0.5).all()
        for i, j in itertools.combinations_with_replacement(range(3), 2):
            product = off[:, i] * off[:, j]
            true = within[i] * (i == j) + shared * (groups[i] == groups[j])
            assert abs(product.mean() - true) < 6.0 * product.std() / n**0.5, (i, j)


# --- the program -----------------------------------------------------------------------------------


def small(program: Any, seed: int = 0, counts: Any = (3, 1, 4), dim: int = 2) -> tuple[Any, Any]:
    """Statistics of three classes, and values of all sites."""
    x, y = rows_of(seed, list(counts), dim)
    data = program.Statistics.of(x, y, range(len(counts)))
    torch.manual_seed(seed)
    values = {
        "strength": torch.rand(dim, dtype=F64) + 0.5,
        "spread": torch.rand(dim, dtype=F64) + 0.5,
        "shape": torch.tensor(2.3, dtype=F64),
        "concentration": torch.tensor(0.8, dtype=F64),
        "sticks": torch.tensor([0.3, 0.6], dtype=F64),
        "precision": torch.rand(len(counts), dim, dtype=F64) + 0.3,
        "mean": torch.randn(len(counts), dim, dtype=F64),
    }
    values |= {f"z_{k}": torch.tensor(g) for k, g in enumerate((0, 2, 0, 1)[: len(counts)])}
    return (x, y, data), values


def log_joint(program: Any, data: Any, values: Any, num_super: int = 3) -> Tensor:
    conditioned = poutine.condition(program.model, data=values)
    trace = poutine.trace(conditioned).get_trace(data, num_super)
    trace.compute_log_prob()
    return sum(node["log_prob"] for node in trace.nodes.values() if node["type"] == "sample")


def full_joint(
    program: Any, x: Tensor, y: Tensor, values: Any, centre: Tensor, q: Tensor
) -> Tensor:
    """The model as it is told, super-classes and images written out."""
    v = values
    weights = torch.stack([v["sticks"][0], 0.7 * v["sticks"][1], 0.7 * (1.0 - v["sticks"][1])])
    total = dist.LogNormal(1.5, 0.5).log_prob(v["shape"]).double()
    total = total + dist.Gamma(torch.tensor(1.0, dtype=F64), 1.0).log_prob(v["concentration"])
    total = (
        total
        + dist.Beta(torch.tensor(1.0, dtype=F64), v["concentration"]).log_prob(v["sticks"]).sum()
    )
    for name, prior in (("strength", program.STRENGTH), ("spread", program.SPREAD)):
        total = total + dist.Gamma(*torch.tensor(prior, dtype=F64)).log_prob(v[name]).sum()
    total = total + dist.Gamma(*prior_of(program)).log_prob(q).sum()
    total = total + dist.Normal(0.0, v["spread"].rsqrt()).log_prob(centre).sum()
    for k in range(len(v["mean"])):
        s = v[f"z_{k}"]
        tau, mu = v["precision"][k], v["mean"][k]
        total = total + weights[s].log()
        total = total + dist.Gamma(v["shape"], v["shape"] * q[s]).log_prob(tau).sum()
        total = total + dist.Normal(centre[s], (v["strength"] * tau).rsqrt()).log_prob(mu).sum()
        total = total + dist.Normal(mu, tau.rsqrt()).log_prob(x[y == k]).sum()
    return total


def test_the_program_is_the_story_with_super_classes_summed_out(program: Any) -> None:
    """log p(sites) = log p(sites, m, q) - log p(m, q | sites), up to one constant: images against their
    statistics. A class of one image and of one super-class are among them."""
    constants = []
    (x, y, data), values = small(program)
    for seed in range(4):
        if seed:
            _, other = small(program, seed)
            changed = ("strength", "spread", "precision", "mean")
            values = values | {name: other[name] for name in changed}
            values |= {"shape": values["shape"] + 0.4, "z_1": torch.tensor(seed % 3)}
            values["concentration"] = values["concentration"] + 0.1
        gamma, normal = program._laws(values, 3)
        centre = torch.randn(3, 2, dtype=F64)
        q = torch.rand(3, 2, dtype=F64) + 0.4
        after = normal.group_law(values["mean"]).log_prob(centre).sum()
        after = after + gamma.group_law(values["precision"]).log_prob(q).sum()
        told = full_joint(program, x, y, values, centre, q) - after
        constants.append(told - log_joint(program, data, values))
    constants = torch.stack(constants)
    # The constants of LogNormal are computed in float32 by its default arguments.
    torch.testing.assert_close(constants, constants[:1].expand(4), rtol=0.0, atol=1e-9)


def test_every_update_is_its_conditional(program: Any) -> None:
    """Ratios of a law's density are those of the joint density as the model tells it."""
    (x, y, data), values = small(program, 5, (3, 2, 4, 1))
    groups = program.groups_of(values, 4)
    centre, q = torch.randn(3, 2, dtype=F64), torch.rand(3, 2, dtype=F64) + 0.4
    # The super-class that has no class is not there for "spread": give all of them one.
    law = program.class_law(data, centre[groups], q[groups], values["shape"], values["strength"])
    strength, spread = program.scale_laws(values, centre, groups)
    _, other = small(program, 6, (3, 2, 4, 1))

    def gap(new: Any) -> Tensor:
        old = full_joint(program, x, y, values, centre, q)
        return full_joint(program, x, y, values | new, centre, q) - old

    def log_law(own: Any) -> Tensor:
        total = law.precision.log_prob(own["precision"]).sum()
        return total + law.mean_given(own["precision"]).log_prob(own["mean"]).sum()

    both = {name: other[name] for name in ("precision", "mean")}
    assert abs(gap(both) - log_law(both) + log_law(values)) < 1e-9
    for name, own in (("strength", strength), ("spread", spread)):
        difference = own.log_prob(other[name]).sum() - own.log_prob(values[name]).sum()
        assert abs(gap({name: other[name]}) - difference) < 1e-9, name


def cluster(
    program: Any, members: list[Tensor], weights: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """log p(images of the classes | one super-class) for one feature, and the means of the classes:
    Normal-Gamma in closed form given m and q, quadrature over these."""
    m, q = LINE[::4].unsqueeze(-1), LOGS[::4].exp()
    shape, strength = weights["shape"], weights["strength"]
    log_p = dist.Normal(0.0, weights["spread"].rsqrt()).log_prob(m)
    log_p = log_p + dist.Gamma(*prior_of(program)).log_prob(q) + q.log()
    locations = []
    for x in members:
        n, mean = len(x), x.mean()
        total, squares = strength + n, (x - mean).square().sum()
        rate = shape * q + (squares + strength * n / total * (mean - m).square()) / 2
        log_p = log_p + torch.lgamma(shape + n / 2) - torch.lgamma(shape)
        log_p = log_p + shape * (shape * q).log() - (shape + n / 2) * rate.log()
        log_p = log_p + (strength / total).log() / 2 - n / 2 * math.log(2 * math.pi)
        locations.append((strength * m + n * mean) / total)
    evidence = log_p.flatten().logsumexp(0)
    share = (log_p - evidence).exp()
    means = torch.stack([(share * loc).sum() for loc in locations])
    return evidence + step(LINE[::4]) + step(LOGS[::4]), means


def enumerate_classes(program: Any, rows: list[Tensor], fixed: dict[str, Tensor]) -> Any:
    """Evidence of images given hyper-parameters, probability that classes share a super-class, and
    their means: a sum over all assignments. One feature."""
    weights = program.stick_weights(fixed["sticks"])
    parts = {
        own: cluster(program, [rows[k] for k in own], fixed)
        for size in range(1, len(rows) + 1)
        for own in itertools.combinations(range(len(rows)), size)
    }
    logs, together, means = [], [], []
    for z in itertools.product(range(len(weights)), repeat=len(rows)):
        total, mean = weights[list(z)].log().sum(), torch.zeros(len(rows), dtype=F64)
        for s in set(z):
            own = tuple(k for k in range(len(rows)) if z[k] == s)
            total = total + parts[own][0]
            mean[list(own)] = parts[own][1]
        groups = torch.tensor(z)
        logs.append(total)
        together.append((groups.unsqueeze(-1) == groups).double())
        means.append(mean)
    log_p = torch.stack(logs)
    share = (log_p - log_p.logsumexp(0)).exp()
    return (
        log_p.logsumexp(0),
        torch.einsum("a,aij->ij", share, torch.stack(together)),
        share @ torch.stack(means),
    )


def log_constant(data: Any) -> Tensor:
    """log p(images) - log p(their mean and sum of squares), one feature."""
    n, squares = data.count, data.scatter[:, 0]
    half = (n - 1.0) / 2
    return (
        half.lgamma() - half * math.log(math.pi) - (half - 1.0) * squares.log() - n.log() / 2
    ).sum()


def test_evidence_and_posterior_of_the_program(program: Any) -> None:
    """The program's density, summed over a grid of precisions and means and over all assignments, against
    enumeration with closed forms."""
    x, y = rows_of(3, [4, 3], 1)
    data = program.Statistics.of(x, y, range(2))
    fixed = {
        "strength": torch.tensor([0.9], dtype=F64),
        "spread": torch.tensor([0.7], dtype=F64),
        "shape": torch.tensor(3.0, dtype=F64),
        "concentration": torch.tensor(1.2, dtype=F64),
        "sticks": torch.tensor([0.45], dtype=F64),
    }
    rows = [x[y == k, 0] for k in range(2)]
    scalars = {name: value.squeeze() for name, value in fixed.items() if name != "sticks"}
    evidence, together, means = enumerate_classes(
        program, rows, scalars | {"sticks": fixed["sticks"]}
    )
    logs, line = torch.linspace(-4.5, 4.0, 20, dtype=F64), torch.linspace(-6.0, 6.0, 31, dtype=F64)
    grid = torch.cartesian_prod(logs, logs, line, line)
    values = fixed | {"precision": grid[:, :2, None].exp(), "mean": grid[:, 2:, None]}
    hyper = {"strength", "spread", "shape", "concentration", "sticks"}
    totals = []
    for z in itertools.product(range(2), repeat=2):
        own = values | {f"z_{k}": torch.tensor(s) for k, s in enumerate(z)}
        trace = poutine.trace(poutine.condition(program.model, data=own)).get_trace(data, 2)
        trace.compute_log_prob(lambda name, _: name not in hyper)
        terms = (
            node["log_prob"]
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and name not in hyper
        )
        totals.append(sum(terms) + grid[:, :2].sum(-1))
    log_p = torch.stack(totals)
    got = log_p.flatten().logsumexp(0) + 2 * step(logs) + 2 * step(line)
    assert abs(got + log_constant(data) - evidence) < 1e-4
    share = (log_p - log_p.flatten().logsumexp(0)).exp()
    assert abs(share[[0, 3]].sum() - together[0, 1]) < 1e-4
    torch.testing.assert_close(share.sum(0) @ grid[:, 2:], means, rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_the_compound_kernel_finds_the_posterior(program: Any) -> None:
    """Chains of the whole model, hyper-parameters free, against enumeration at draws of these from their
    prior, weighted by their evidence; within 6 standard errors."""
    x, y = rows_of(3, [6, 5, 4], 1)
    x[y == 2] += 2.0
    data = program.Statistics.of(x, y, range(3))
    rows = [x[y == k, 0] for k in range(3)]
    torch.manual_seed(0)
    logs, together, means = [], [], []
    for _ in range(1500):
        trace = poutine.trace(program.model).get_trace(data, 2)
        names = ("strength", "spread", "shape", "sticks")
        drawn = {name: trace.nodes[name]["value"].double() for name in names}
        fixed = {name: value.squeeze() for name, value in drawn.items() if name != "sticks"}
        found = enumerate_classes(program, rows, fixed | {"sticks": drawn["sticks"]})
        for part, value in zip((logs, together, means), found, strict=True):
            part.append(value)
    share = torch.stack(logs).softmax(0)
    pairs = torch.stack([t[[0, 0, 1], [1, 2, 2]] for t in together])
    exact = torch.cat([pairs, torch.stack(means)], 1)
    expected = share @ exact
    reference_error = (share.square() @ (exact - expected).square()).sqrt()
    tree = program.infer(data, num_super=2, draws=1600, warmup=200, seed=1)
    same = (tree.groups.unsqueeze(-1) == tree.groups.unsqueeze(-2)).double()
    drawn = torch.cat([same[:, [0, 0, 1], [1, 2, 2]], tree.draws["mean"][..., 0]], 1)
    batches = drawn.reshape(20, -1, drawn.shape[-1]).mean(1)
    error = (batches.var(0) / len(batches) + reference_error.square()).sqrt()
    assert (error < 0.1).all()
    assert ((drawn.mean(0) - expected).abs() < 6.0 * error).all(), (drawn.mean(0), expected, error)


def test_super_classes_are_found(program: Any) -> None:
    """Two groups of classes that are far apart, in several features."""
    generator = torch.Generator().manual_seed(0)
    centre = 4.0 * torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]], dtype=F64)
    group = torch.tensor([0, 1, 0, 1, 0])
    means = centre[group] + 0.3 * torch.randn(5, 4, generator=generator, dtype=F64)
    labels = torch.arange(5).repeat_interleave(40)
    x = means[labels] + torch.randn(200, 4, generator=generator, dtype=F64)
    data = program.Statistics.of(x, labels, range(5))
    tree = program.infer(data, num_super=3, draws=10, warmup=10)
    assert tree.thinned(4).groups.shape == (4, 5) and tree.centre.shape == (10, 3, 4)
    truth = group.unsqueeze(-1) == group
    assert (tree.together[truth] > 0.7).all() and (tree.together[~truth] < 0.3).all()
    flat = program.infer(data, num_super=1, draws=4, warmup=4)
    assert (flat.groups == 0).all() and set(flat.draws) == {
        "strength", "spread", "shape", "precision", "mean"
    }  # fmt: skip


def test_a_class_without_images(program: Any) -> None:
    with pytest.raises(ValueError, match="needs an image"):
        program.Statistics.of(torch.zeros(2, 3), torch.tensor([0, 0]), (0, 1))
