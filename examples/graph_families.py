# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Families of random graphs for ``structure_learning.py``, and priors that know them."""

from typing import Any

import torch
from potts_models import pairs
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import exact_log_partition, log_likelihood
from pyro_ebm.training import Trainer, TrainerConfig

#: Probability that an edge of the pattern is there, and that any other one is.
KEEP, EXTRA = 0.9, 0.01


def lattice(num_spins: int, width: int) -> Tensor:
    """Whether pairs are neighbours where spins are written line by line, boolean, shape ``(pairs,)``."""
    first, second = pairs(num_spins)
    beside = (second == first + 1) & (second % width != 0)
    return beside | (second == first + width)


def widths(num_spins: int) -> list[int]:
    """Widths of the lattices of at least two lines and two columns."""
    return [w for w in range(2, num_spins // 2 + 1) if num_spins % w == 0]


def rasters(num_graphs: int, num_spins: int, generator: Generator) -> Tensor:
    """Lattices of unknown width: a picture in raster order, of which nobody said how long its lines are."""
    patterns = torch.stack([lattice(num_spins, w) for w in widths(num_spins)])
    chosen = torch.randint(len(patterns), (num_graphs,), generator=generator)
    return _noisy(patterns[chosen], generator)


def hubs(num_graphs: int, num_spins: int, generator: Generator) -> Tensor:
    """Two spins are hubs, and every other one hangs on one of them."""
    first, second = pairs(num_spins)
    order = torch.rand(num_graphs, num_spins, generator=generator).argsort(-1)
    side = torch.randint(2, (num_graphs, num_spins), generator=generator)
    # The hub of every spin; a hub is its own.
    hub = order[:, :2].gather(1, side).scatter(1, order[:, :2], order[:, :2])
    pattern = (hub[:, first] == second) | (hub[:, second] == first)
    return _noisy(pattern, generator)


def _noisy(pattern: Tensor, generator: Generator) -> Tensor:
    rate = torch.where(pattern, KEEP, EXTRA)
    return torch.bernoulli(rate, generator=generator)


FAMILIES = {"hubs": hubs, "rasters": rasters}


def fit_priors(
    family: str, num_spins: int, options: Any
) -> tuple[dict[str, RBM], dict[str, float]]:
    """Priors of edges from graphs of the family: an RBM, and independent edges with the rates of the graphs,
    which those of the RBM are close to (see ``edge_rates``).

    :returns: the priors, and the log-likelihood of each on further graphs in nats a graph.
    """
    generator = Generator().manual_seed(options.seed)
    train, test = (FAMILIES[family](n, num_spins, generator) for n in (options.graphs, 2000))
    module = nn.RBM(train.shape[1], options.hidden, weight_scale=0.1, seed=options.seed)
    config = TrainerConfig(
        num_epochs=options.epochs,
        batch_size=200,
        optimizer="adam",
        learning_rate=0.02,
        learning_rate_schedule="cosine",
        # Chains would have to cross between the patterns; few hidden units can be summed.
        negative_phase="exact",
        seed=options.seed,
        progress=False,
    )
    Trainer(module.init_from_data(train), config).fit(train)
    bias = train.mean(0).clamp(1e-3, 1.0 - 1e-3).logit()
    independent = BernoulliRBM(bias.new_zeros(len(bias), 1), bias, bias.new_zeros(1))
    priors = {"independent edges": independent, "RBM": module().detach()}
    fits = {
        name: log_likelihood(prior, test, exact_log_partition(prior)).mean().item()
        for name, prior in priors.items()
    }
    return priors, fits


def edge_rates(prior: RBM) -> Tensor:
    """Probability of every edge, the gradient of log Z by its bias, shape ``(pairs,)``."""
    bias = prior.visible.bias.detach().clone().requires_grad_()
    machine = BernoulliRBM(prior.weight.detach(), bias, prior.hidden.bias.detach())
    (rates,) = torch.autograd.grad(exact_log_partition(machine), bias)
    return rates
