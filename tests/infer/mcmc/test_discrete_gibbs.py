# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Exact conditional draws of discrete sites, against Bayes' rule and enumeration."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import DiscreteGibbs
from tests.infer.reference import Z_LIMIT, z_scores

WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
DATA = torch.tensor([0.0, 0.4, 1.0, 2.5])


def rows(num_rows: int = 4) -> None:
    """Rows with different data, one of them masked."""
    mask = torch.tensor([True, True, True, False])
    with pyro.plate("rows", num_rows):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        with pyro.poutine.mask(mask=mask[:num_rows]):
            pyro.sample("x", dist.Normal(1.0 * z, 1.2), obs=DATA[:num_rows])


def first_axis() -> None:
    """A model that cannot be run with chains."""
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.factor("f", torch.stack([z, 1.0 - z])[0] * 1.5 if z.dim() == 0 else z[5])


def draws_of(kernel: DiscreteGibbs, count: int) -> dict[str, Tensor]:
    kernel.setup(0)
    params, draws = kernel.initial_params, []
    for _ in range(count):
        params = kernel.sample(params)
        draws.append(params)
    return {name: torch.stack([d[name] for d in draws]) for name in params}


def test_rows_are_drawn_from_bayes_rule() -> None:
    """Draws of one site given the rest are independent."""
    z = draws_of(DiscreteGibbs(rows), 1000)["z"]
    likelihood = dist.Normal(torch.arange(3.0), 1.2).log_prob(DATA[:, None]).exp()
    likelihood[3] = 1.0
    p = WEIGHTS * likelihood
    p = p / p.sum(-1, keepdim=True)
    rates = torch.nn.functional.one_hot(z.long(), 3).float().mean(0)
    assert p.min() > 0.05
    assert ((rates - p) / (p * (1.0 - p) / len(z)).sqrt()).abs().max() < Z_LIMIT


def test_a_model_without_chains() -> None:
    z = draws_of(DiscreteGibbs(first_axis), 1000)["z"]
    odds = torch.tensor(0.3 / 0.7) * torch.tensor(1.5).exp()
    assert z_scores(z[:, None], (odds / (1.0 + odds))[None]).abs().max() < Z_LIMIT


def chain() -> None:
    """Three sites in a row, of two families; the last is seen."""
    a = pyro.sample("a", dist.Categorical(WEIGHTS))
    b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9])[a.long()]))
    c = pyro.sample("c", dist.Binomial(2, 0.3 + 0.4 * b))
    pyro.sample("x", dist.Normal(c - b, 1.0), obs=torch.tensor(1.2))


def test_several_sites() -> None:
    draws = draws_of(DiscreteGibbs(chain), 1500)
    table = torch.tensor(list(itertools.product(range(3), range(2), range(3)))).float()
    a, b, c = table.T
    log_p = (
        WEIGHTS[a.long()].log()
        + dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9])[a.long()]).log_prob(b)
        + dist.Binomial(2, 0.3 + 0.4 * b).log_prob(c)
        + dist.Normal(c - b, 1.0).log_prob(torch.tensor(1.2))
    )
    expected = torch.softmax(log_p, 0) @ table
    got = torch.stack([draws[name] for name in "abc"], -1)
    # Sites depend on each other: thin the draws to a fifth.
    assert z_scores(got[::5], expected).abs().max() < Z_LIMIT


def test_mcmc() -> None:
    mcmc = MCMC(DiscreteGibbs(chain), 20, 2, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert {name: tuple(s.shape) for name, s in samples.items()} == dict.fromkeys("abc", (20,))
    assert all(s.dtype == torch.float32 for s in samples.values())
    assert mcmc.diagnostics()["divergences"] == {"chain 0": []}


def test_start() -> None:
    kernel = DiscreteGibbs(rows)
    kernel.initial_params = {"z": torch.tensor([2.0, 1.0, 0.0, 1.0])}
    kernel.setup(0)
    assert kernel.initial_params["z"].tolist() == [2.0, 1.0, 0.0, 1.0]
    kernel.initial_params = {"z": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"shapes \{'z': \(4,\)\}, got \{'z': \(3,\)\}"):
        kernel.setup(0)


def test_generator() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        kernel = DiscreteGibbs(rows, generator=torch.Generator().manual_seed(5))
        kernel.initial_params = {"z": torch.zeros(4)}
        results.append(draws_of(kernel, 30)["z"])
    assert torch.equal(*results)


def continuous() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def machine() -> None:
    pyro.sample("v", BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2)))


def nothing() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (continuous, "cannot draw site 'x' of Normal"),
        (machine, "cannot draw site 'v' of BernoulliRBM"),
        (nothing, "needs a model with discrete sites"),
    ],
)
def test_other_models_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteGibbs(model).setup(0)


def test_target() -> None:
    with pytest.raises(TypeError, match="model must be a Pyro model, got int"):
        DiscreteGibbs(3)  # type: ignore[arg-type]
