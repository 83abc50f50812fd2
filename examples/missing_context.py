# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The model of ``nbm_missing_context.py``: covariates, some of which are unknown, and outcomes given them."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, reduced_machine
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.missing import impute
from pyro_ebm.nn.networks import Linear, Sequential
from pyro_ebm.predictive import GaussianMixture, marginal_mixture

__all__ = [
    "MissingContext",
    "fixed",
    "log_density",
    "mixture",
    "normalized",
    "posterior_by_weights",
]


def normalized(machine: RBM) -> RBM:
    """The machine with its exact log Z, by a sum over the hidden spins; differentiable."""
    return machine.normalize(exact_log_partition(reduced_machine(machine)))


class MissingContext(PyroModule):
    r"""Covariates :math:`x \sim` RBM and outcomes :math:`y \mid x \sim` neural Boltzmann machine.

    :param int num_covariates: entries of x.
    :param int num_outcomes: entries of y.
    :param int hidden_covariates: hidden spins of the machine of x, at most 12 or so.
    :param int hidden: hidden spins of the machine of y, at most 12 or so.
    :param sizes: layers of the networks from x to the parameters of the machine of y; none for affine maps.
    :param int width: of the guide's hidden layer.
    :param int seed: seed of the initial parameters.

    ``imputer`` is None, or the machine of x as it was when the gaps of the training rows were filled with
    conditional means; the training that follows changes ``covariates``, and not it.
    """

    imputer: RBM | None = None

    def __init__(
        self,
        num_covariates: int,
        num_outcomes: int,
        hidden_covariates: int = 8,
        hidden: int = 4,
        *,
        sizes: list[int] | None = None,
        width: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.covariates = nn.RBM(
            num_covariates,
            hidden_covariates,
            "gaussian",
            "ising",
            visible_options={"learn_precision": True},
            weight_scale=0.3,
            seed=seed,
        )
        self.outcomes = nn.NeuralBoltzmannMachine(
            num_covariates,
            num_outcomes,
            hidden,
            hidden_sizes=sizes or [],
            weight="constant",
            seed=seed,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.proposal = Sequential(
                Linear(2 * num_covariates + num_outcomes, width),
                torch.nn.Tanh(),
                Linear(width, 2 * num_covariates),
            )

    def model(self, x: Tensor, observed: Tensor, y: Tensor | None) -> Tensor:
        """The program.

        Every entry of x has a latent one beside it. Where x is missing, that one takes its place, and has no
        density of its own, as the machine of x gives it one. Where x is known it is standard normal noise
        that nothing depends on, so that the program has one shape for all rows.

        :param Tensor x: covariates, shape ``(rows, C)``; read only where observed.
        :param Tensor observed: boolean, shape ``(rows, C)``.
        :param Tensor y: outcomes, shape ``(rows, O)``; None to draw them.
        :returns: the completed covariates.
        """
        with pyro.plate("rows", len(x)):
            noise = dist.Normal(torch.zeros_like(x), 1.0)
            latent = pyro.sample("latent", noise.mask(observed).to_event(1))
            complete = torch.where(observed, x, latent)
            pyro.sample("x", normalized(self.covariates()), obs=complete)
            pyro.sample("y", normalized(self.outcomes.condition(complete)), obs=y)
        return complete

    def guide(self, x: Tensor, observed: Tensor, y: Tensor) -> None:
        """Normal laws of the missing entries, from what is known of the row and which entries these are."""
        loc, scale = self.proposals(x, observed, y)
        with pyro.plate("rows", len(x)):
            # Where x is known this is the model's noise, and the two cancel.
            loc = torch.where(observed, 0.0, loc)
            scale = torch.where(observed, 1.0, scale)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))

    def proposals(self, x: Tensor, observed: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the guide."""
        seen = torch.where(observed, x, 0.0)
        values = self.proposal(torch.cat([seen, observed.to(x), y], -1))
        loc, log_scale = values.chunk(2, -1)
        return loc, log_scale.clamp(-6.0, 2.0).exp()


def fixed(module: MissingContext, x: Tensor, observed: Tensor, y: Tensor) -> Callable[[], None]:
    """The program for samplers: parameters are known."""

    def program() -> None:
        with poutine.block(hide_types=["param"]):
            module.model(x, observed, y)

    return program


# --- predictions with what is missing summed out ------------------------------------------------------


@torch.no_grad()
def _conditioned(
    module: MissingContext, x: Tensor, observed: Tensor, draws: int, generator: Generator | None
) -> tuple[Tensor, RBM]:
    """Exact draws of x given what is observed, and the machines of y there: batch ``(draws, rows)``."""
    found = impute(module.covariates(), x, observed, num_samples=draws, generator=generator)
    return found.samples, module.outcomes.condition(found.samples)


@torch.no_grad()
def log_density(
    module: MissingContext,
    x: Tensor,
    observed: Tensor,
    y: Tensor,
    draws: int,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""log p(y | x_observed), as the mean of p(y | x) over exact draws of the missing entries.

    The mean is unbiased; its logarithm is too low by half of its relative variance.

    :returns: values and their standard errors, shape ``(rows,)``.
    """
    _, machine = _conditioned(module, x, observed, draws, generator)
    log_p = normalized(machine).log_prob(y).double()
    value = torch.logsumexp(log_p, 0) - torch.tensor(float(draws)).log()
    relative = (log_p - value).exp()
    return value, relative.std(0, correction=0) / draws**0.5


@torch.no_grad()
def mixture(
    module: MissingContext,
    x: Tensor,
    observed: Tensor,
    draws: int,
    generator: Generator | None = None,
) -> GaussianMixture:
    """Marginal predictive distributions of the outcomes: a normal law for every draw and hidden state."""
    _, machine = _conditioned(module, x, observed, draws, generator)
    own = marginal_mixture(machine)
    shape = own.means.shape
    means, stds, weights = (
        t.expand(shape).flatten(0, 1) for t in (own.means, own.stds, own.weights / draws)
    )
    return GaussianMixture(means, stds, weights)


@torch.no_grad()
def posterior_by_weights(
    module: MissingContext,
    x: Tensor,
    observed: Tensor,
    y: Tensor,
    draws: int,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws of x given what is observed of it, and their weights given y as well.

    :returns: shapes ``(draws, rows, C)`` and ``(draws, rows)``, where weights sum to one over draws.
    """
    samples, machine = _conditioned(module, x, observed, draws, generator)
    return samples, normalized(machine).log_prob(y).double().softmax(0)
