# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A conditional variational autoencoder with as many parameters as a neural Boltzmann machine."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from pyro_ebm.nn.networks import soft_clamp

__all__ = ["ConditionalVAE", "fit_cvae"]

#: Bounds of the logarithm of a precision, those of the neural Boltzmann machine.
_LOG_BOUND = math.log(1e3)


class ConditionalVAE(nn.Module):
    """Normal latent variables z, and y given z and a context x; one hidden layer on each side.

    :param int num_context: entries of x.
    :param int num_visible: entries V of y.
    :param int num_hidden: hidden units of the neural Boltzmann machine (networks of 32 units for vectors, one
        affine layer for W) whose number of parameters the hidden layers are sized for.
    :param str family: "bernoulli", "ising" or "gaussian".
    :param int num_latent: entries of z.
    """

    def __init__(
        self,
        num_context: int,
        num_visible: int,
        num_hidden: int,
        family: str = "bernoulli",
        num_latent: int = 32,
    ) -> None:
        super().__init__()
        if family not in ("bernoulli", "ising", "gaussian"):
            raise ValueError(f"family must be 'bernoulli', 'ising' or 'gaussian', got {family!r}")
        self.family, self.num_latent, self.num_context = family, num_latent, num_context
        outputs = num_visible * (2 if family == "gaussian" else 1)
        encoder = num_visible + num_context
        decoder = num_latent + num_context
        # A hidden unit has its inputs, its bias and its outputs; outputs have biases of their own.
        each = (encoder + 1 + 2 * num_latent) + (decoder + 1 + outputs)
        rest = 2 * num_latent + outputs
        target = nbm_parameters(num_context, num_visible, num_hidden, family)
        width = max(1, round((target - rest) / each))
        self.encoder = _perceptron(encoder, width, 2 * num_latent)
        self.decoder = _perceptron(decoder, width, outputs)

    @property
    def num_parameters(self) -> int:
        """Parameters of both networks."""
        return sum(parameter.numel() for parameter in self.parameters())

    def posterior(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | y, x), shape ``(rows, num_latent)``."""
        loc, raw = self.encoder(torch.cat([y, x], -1)).chunk(2, -1)
        return loc, soft_clamp(raw, -_LOG_BOUND, _LOG_BOUND).exp()

    def likelihood(self, y: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """log p(y | z, x), shape ``(..., rows)`` for z of shape ``(..., rows, num_latent)``."""
        out = self.decoder(torch.cat([z, x.expand(*z.shape[:-1], -1)], -1))
        if self.family == "gaussian":
            loc, raw = out.chunk(2, -1)
            log_precision = soft_clamp(raw, -_LOG_BOUND, _LOG_BOUND)
            square = log_precision.exp() * (y - loc).square()
            return 0.5 * (log_precision - square - math.log(2.0 * math.pi)).sum(-1)
        bits = (y + 1.0) / 2.0 if self.family == "ising" else y
        bits = bits.expand_as(out)
        return -binary_cross_entropy_with_logits(out, bits, reduction="none").sum(-1)

    def log_weights(
        self, y: Tensor, x: Tensor, num_draws: int, generator: Generator | None = None
    ) -> Tensor:
        """log p(y, z | x) / q(z | y, x) of draws from q, shape ``(num_draws, rows)``."""
        loc, std = self.posterior(y, x)
        noise = loc.new_empty(num_draws, *loc.shape).normal_(generator=generator)
        z = loc + std * noise
        prior_over_posterior = 0.5 * (noise.square() - z.square()).sum(-1) + std.log().sum(-1)
        return self.likelihood(y, z, x) + prior_over_posterior

    @torch.no_grad()
    def log_prob_bound(
        self, y: Tensor, x: Tensor, num_draws: int = 64, generator: Generator | None = None
    ) -> Tensor:
        """A lower bound (in expectation) of log p(y | x) by importance sampling, shape ``(rows,)``.

        It rises to log p(y | x) with the number of draws (Burda, Grosse and Salakhutdinov, 2016).
        """
        parts = []
        portion = max(1, 2**23 // (num_draws * y.shape[-1]))
        for part, context in zip(y.split(portion), x.split(portion), strict=True):
            weights = self.log_weights(part, context, num_draws, generator)
            parts.append(torch.logsumexp(weights, 0) - math.log(num_draws))
        return torch.cat(parts)

    def class_log_prob_bound(
        self, y: Tensor, num_draws: int = 16, generator: Generator | None = None
    ) -> Tensor:
        """:meth:`log_prob_bound` with every class as the context, shape ``(rows, num_context)``. The class
        posterior that it gives is that of bounds, not of likelihoods."""
        labels = torch.arange(self.num_context, device=y.device)
        contexts = one_hot(labels, self.num_context).to(y.dtype)
        columns = [
            self.log_prob_bound(y, context.expand(len(y), -1), num_draws, generator)
            for context in contexts
        ]
        return torch.stack(columns, -1)

    @torch.no_grad()
    def sample(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """One y a row of contexts, shape ``(rows, V)``."""
        z = x.new_empty(len(x), self.num_latent).normal_(generator=generator)
        out = self.decoder(torch.cat([z, x], -1))
        if self.family == "gaussian":
            loc, raw = out.chunk(2, -1)
            std = (-0.5 * soft_clamp(raw, -_LOG_BOUND, _LOG_BOUND)).exp()
            return loc + std * torch.empty_like(loc).normal_(generator=generator)
        bits = torch.bernoulli(torch.sigmoid(out), generator=generator)
        return 2.0 * bits - 1.0 if self.family == "ising" else bits


def nbm_parameters(num_context: int, num_visible: int, num_hidden: int, family: str) -> int:
    """Parameters of a neural Boltzmann machine with its default networks and a hidden bias."""
    vectors = num_hidden + num_visible * (2 if family == "gaussian" else 1)
    networks = 3 if family == "gaussian" else 2
    weight = (num_context + 1) * num_visible * num_hidden
    return weight + 33 * vectors + networks * 32 * (num_context + 1)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


def fit_cvae(
    model: ConditionalVAE,
    y: Tensor,
    x: Tensor,
    *,
    num_epochs: int = 50,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    binarize: bool = False,
    noise_std: float = 0.0,
    generator: Generator | None = None,
) -> ConditionalVAE:
    """Maximise the evidence lower bound by Adam, the rate falling to zero along a cosine.

    :param ConditionalVAE model: the model, which is changed.
    :param Tensor y: shape ``(rows, V)``.
    :param Tensor x: shape ``(rows, num_context)``.
    :param bool binarize: whether y are rates from which bits (or spins) are drawn at every visit.
    :param float noise_std: standard deviation of noise that is added at every visit.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    num_steps = num_epochs * -(-len(y) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_epochs):
        order = torch.randperm(len(y), generator=generator, device=y.device)
        for rows in order.split(batch_size):
            batch = y[rows]
            if binarize:
                batch = torch.bernoulli(batch, generator=generator)
                batch = 2.0 * batch - 1.0 if model.family == "ising" else batch
            if noise_std:
                noise = torch.empty_like(batch).normal_(generator=generator)
                batch = torch.add(batch, noise, alpha=noise_std)
            optimizer.zero_grad()
            (-model.log_weights(batch, x[rows], 1, generator).mean()).backward()
            optimizer.step()
            schedule.step()
    return model
