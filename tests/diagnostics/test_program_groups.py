# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What ArviZ is given of a Pyro program, against the densities that it is made of."""

import math
import warnings
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ebm.diagnostics import program_groups, to_inference_data
from pyro_ebm.distributions import DBM, BernoulliRBM, units
from pyro_ebm.infer import exact_log_partition

Z_BOUND = 6.0
X = torch.tensor([[0.9, 0.1, 1.2], [0.2, -0.3, 0.8]])
MASK = torch.tensor([True, False])


def prior() -> BernoulliRBM:
    return BernoulliRBM(
        torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 1.0]]), torch.zeros(3), torch.zeros(2)
    )


def model(x: Tensor, mask: Any = True) -> None:
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    machine = prior()
    with pyro.plate("rows", len(x)), poutine.scale(scale=10.0), poutine.mask(mask=mask):
        clean = pyro.sample("clean", machine)
        pyro.deterministic("twice", 2.0 * clean)
        pyro.sample("x", dist.Normal(clean, scale.unsqueeze(-1)).to_event(1), obs=x)
    pyro.factor("bonus", -scale)


def draws(chains: int, count: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    scale = torch.rand(chains, count) + 0.2
    # A sampler's further layers are no sites of the model.
    return {"scale": scale, "clean": prior().sample((chains, count, 2)), "clean.h2": scale}


def test_log_likelihood_is_that_of_the_rows_without_scale() -> None:
    posterior = draws(2, 5)
    groups = program_groups(posterior, model, X, posterior_predictive=False)
    expected = (
        dist.Normal(posterior["clean"], posterior["scale"][..., None, None]).log_prob(X).sum(-1)
    )
    assert set(groups) == {"observed_data", "log_likelihood"}
    assert set(groups["log_likelihood"]) == {"x"}
    assert torch.allclose(groups["log_likelihood"]["x"], expected)
    with pytest.raises(ValueError, match="masked out"):
        program_groups(posterior, model, X, mask=MASK)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws(parallel: bool) -> None:
    """Draws of x have the mean and the scale that they are drawn with."""

    def simple(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(1.0, scale), obs=x)

    pyro.set_rng_seed(0)
    scale = torch.tensor([0.1, 2.0]).repeat_interleave(500)
    groups = program_groups(
        {"scale": scale.expand(2, -1)},
        simple,
        torch.zeros(3),
        num_prior_samples=1000,
        parallel=parallel,
    )
    predicted = groups["posterior_predictive"]["x"]
    assert predicted.shape == (2, 1000, 3)
    for half, own in ((predicted[:, :500], 0.1), (predicted[:, 500:], 2.0)):
        assert abs(half.mean() - 1.0) < Z_BOUND * own / math.sqrt(half.numel())
        assert abs(half.std() / own - 1.0) < Z_BOUND / math.sqrt(2 * half.numel())
    prior_scale = groups["prior"]["scale"].log()
    assert abs(prior_scale.mean() + 1.0) < Z_BOUND * 0.5 / math.sqrt(1000)
    residual = (groups["prior_predictive"]["x"] - 1.0) / groups["prior"]["scale"].unsqueeze(-1)
    assert abs(residual.std() - 1.0) < Z_BOUND / math.sqrt(2 * residual.numel())


def test_machines_are_drawn_from() -> None:
    """Prior predictive of a latent machine: its exact mean."""
    pyro.set_rng_seed(0)
    groups = program_groups(draws(1, 2), model, X, num_prior_samples=1500, parallel=True)
    states = prior().visible.states(0, 8)
    mean = torch.softmax(-prior().free_energy(states), 0) @ states
    drawn = groups["prior"]["clean"]
    assert drawn.shape == (1, 1500, 2, 3)
    error = (mean * (1 - mean) / 3000).sqrt()
    assert ((drawn.mean((0, 1, 2)) - mean) / error).abs().max() < Z_BOUND


@pytest.mark.parametrize("wrap", [lambda m: m.expand((2,)).to_event(1), lambda m: m.mask(True)])
def test_wrapped_machines_need_log_z(wrap: Any) -> None:
    def observed() -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("v", wrap(prior()), obs=torch.ones(2, 3))

    with pytest.raises(ValueError, match="without log Z"):
        program_groups({"scale": torch.rand(1, 4)}, observed)


def test_deep_machines_and_subsamples_are_refused() -> None:
    layers = [units.Bernoulli(torch.zeros(n)) for n in (3, 2, 2)]
    deep = DBM(layers, [torch.ones(3, 2), torch.ones(2, 2)]).normalize(3.0)

    def observed(subsample_size: int | None) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 4, subsample_size=subsample_size) as rows:
            pyro.sample("v", deep, obs=torch.ones(4, 3)[rows])

    posterior = {"scale": torch.rand(1, 4)}
    with pytest.raises(ValueError, match="a bound"):
        program_groups(posterior, observed, None)
    with pytest.raises(ValueError, match="random subsample"):
        program_groups(posterior, observed, 2)


def test_arviz_reads_the_groups() -> None:
    posterior = {name: x for name, x in draws(2, 8).items() if name != "clean.h2"}
    groups = program_groups(posterior, model, X, num_prior_samples=4)
    idata = to_inference_data(posterior, groups=groups)
    assert set(idata.groups()) == {"posterior", *groups}
    assert idata.observed_data["x"].shape == (2, 3)
    # PSIS needs some draws.
    posterior = {name: x for name, x in draws(2, 100).items() if name != "clean.h2"}
    groups = program_groups(posterior, model, X, posterior_predictive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = az.loo(to_inference_data(posterior, groups=groups), pointwise=True)
    assert loo.n_data_points == 2
    lppd = torch.logsumexp(groups["log_likelihood"]["x"].double().flatten(0, 1), 0) - math.log(200)
    assert (torch.as_tensor(loo.loo_i.values) < lppd).all()


def test_machines_that_are_observed_need_log_z() -> None:
    def observed(normalised: bool) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        machine = BernoulliRBM(scale * torch.ones(3, 2), torch.zeros(3), torch.zeros(2))
        if normalised:
            machine = machine.normalize(exact_log_partition(machine))
        with pyro.plate("rows", 2):
            pyro.sample("v", machine, obs=torch.ones(2, 3))

    posterior = {"scale": torch.rand(1, 4)}
    with pytest.raises(ValueError, match="without log Z"):
        program_groups(posterior, observed, False)
    groups = program_groups(posterior, observed, True)
    machine = BernoulliRBM(
        posterior["scale"][0, 2] * torch.ones(3, 2), torch.zeros(3), torch.zeros(2)
    )
    expected = (machine.log_prob(torch.ones(3)) - exact_log_partition(machine)).float()
    assert torch.allclose(groups["log_likelihood"]["v"][0, 2], expected)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"no draws of the latent sites \['scale'\]"):
        program_groups({"clean": torch.zeros(1, 2, 2, 3)}, model, X)
    with pytest.raises(ValueError, match="observes nothing"):
        program_groups({"z": torch.zeros(1, 2)}, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match="no latent sites"):
        program_groups({}, lambda: pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(())))
    with pytest.raises(ValueError, match="numbers of chains and draws differ"):
        short = {"scale": torch.ones(1, 3), "clean": torch.zeros(1, 2, 2, 3)}
        program_groups(short, model, X)
    with pytest.raises(ValueError, match="numbers of chains and draws differ"):
        groups = {"log_likelihood": {"x": torch.zeros(1, 3, 2)}}
        to_inference_data({"z": torch.zeros(1, 2)}, groups=groups)
    with pytest.raises(ValueError, match=r"groups may have .*'predictions'"):
        to_inference_data({"z": torch.zeros(1, 2)}, groups={"predictions": {}})
