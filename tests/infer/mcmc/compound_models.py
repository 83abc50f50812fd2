# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Models with machines in them, their exact means, and compound chains of them."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import Gibbs
from pyro_ebm.ops.chains import effective_sample_size

Model = Callable[..., Any]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def machine() -> RBM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weight, visible, hidden = torch.randn(4, 3), torch.randn(4), torch.randn(3)
        return BernoulliRBM(weight.double(), visible.double(), hidden.double())


PRIOR = machine()
SEEN = double(1.3, -0.2, 0.4, 0.9)


def noisy(seen: Tensor = SEEN) -> None:
    """Bits through noise of an unknown scale."""
    scale = pyro.sample("scale", dist.LogNormal(double(-0.5).squeeze(), 0.7))
    v = pyro.sample("v", PRIOR)
    pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=seen)


def bent(v: Tensor, scale: Tensor) -> Tensor:
    return torch.cos(scale + v.sum(-1)) + 2.0 * torch.tanh(scale) * v[..., 0] * v[..., 1]


def coupled() -> None:
    """Bits and a scale in a likelihood that is not linear in the bits."""
    scale = pyro.sample("scale", dist.LogNormal(double(0.0).squeeze(), 0.5))
    v = pyro.sample("v", PRIOR)
    pyro.factor("f", bent(v, scale))


def posterior(model: Model) -> tuple[Tensor, Tensor]:
    """Means of v and of log scale: the scale on a grid, v by enumeration."""
    log_scale = torch.linspace(-6.0, 5.0, 4001, dtype=torch.float64)
    scale = log_scale.exp()[:, None]
    states = PRIOR.visible.states(0, 16)
    if model is noisy:
        law, density = dist.Normal(-0.5, 0.7), dist.Normal(states, scale[..., None])
        rest = density.log_prob(SEEN).sum(-1)
    else:
        law, rest = dist.Normal(0.0, 0.5), bent(states, scale)
    log_p = law.log_prob(log_scale)[:, None] + PRIOR.log_prob(states) + rest
    p = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)
    return p.sum(0) @ states, p.sum(1) @ log_scale


def run(kernel: Gibbs, *args: Any, num_samples: int = 300, **options: Any) -> MCMC:
    options = {"warmup_steps": 100, "disable_progbar": True, **options}
    mcmc = MCMC(kernel, num_samples=num_samples, **options)
    mcmc.run(*args)
    return mcmc


def standard_errors(draws: Tensor, expected: Tensor) -> Tensor:
    """Distance of the mean of a chain from the truth, in standard errors by its ESS.

    Short chains are trusted with half of it; what hardly ever changes, with a quarter of the draws.
    """
    size = 0.5 * effective_sample_size(draws[None]).clamp(max=len(draws))
    deviation = draws.std(0)
    rare = (expected * (1.0 - expected)).clamp(min=1e-6).sqrt()
    size = torch.where(deviation > 0.0, size, len(draws) / 4)
    return (draws.mean(0) - expected) / (
        torch.where(deviation > 0.0, deviation, rare) / size.sqrt()
    )


def worst(mcmc: MCMC, model: Model) -> float:
    v, log_scale = posterior(model)
    samples = mcmc.get_samples()
    z = standard_errors(samples["v"], v)
    z_scale = standard_errors(samples["scale"].log()[:, None], log_scale)
    return torch.cat([z, z_scale]).abs().max().item()
