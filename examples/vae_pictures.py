# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of ``vae_rbm_prior.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from vae_model import VAE

from pyro_ebm import plotting
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.plotting.figures import COLOURS, annotate, new_figure, plain

#: What the priors are called in pictures.
TITLES = {"rbm": "RBM prior", "independent": "independent prior"}
#: Draws of which covariances are taken; their errors are about 0.002.
_DRAWS = 10_000


@torch.no_grad()
def draw_prior(vae: VAE, count: int, sweeps: int, seed: int = 0) -> Tensor:
    """Bits from the prior, shape ``(count, latent)``; of a machine by chains that start at fair coins."""
    prior = vae.prior()
    generator = Generator().manual_seed(seed)
    if not isinstance(prior, RBM):
        return torch.bernoulli(prior.base_dist.probs.expand(count, -1), generator=generator)
    coins = torch.full_like(prior.weight[:, 0], 0.5).expand(count, -1)
    start = torch.bernoulli(coins, generator=generator)
    return GibbsSweep(prior.detach(), generator).run(start, sweeps)


@torch.no_grad()
def draw_posterior(vae: VAE, images: Tensor, seed: int = 0) -> Tensor:
    """One draw of the guide for every image: the aggregated posterior, shape ``(rows, latent)``."""
    generator = Generator().manual_seed(seed)
    return torch.bernoulli(torch.sigmoid(vae.encoder(images)), generator=generator)


@torch.no_grad()
def picture_of_samples(
    models: Mapping[str, VAE], image_shape: Sequence[int], sweeps: int, count: int = 64
) -> Any:
    """Means of the pixels given draws of z from each prior."""
    panels = {
        TITLES[name]: torch.sigmoid(vae.decoder(draw_prior(vae, count, sweeps)))
        for name, vae in models.items()
    }
    return plotting.image_grid(
        panels, image_shape, caption="means of the pixels given z from the prior"
    )


@torch.no_grad()
def picture_of_reconstructions(
    models: Mapping[str, VAE], images: Tensor, image_shape: Sequence[int]
) -> Any:
    """Images, and what is left of them after one draw of the guide."""
    panels = {"images": images} | {
        TITLES[name]: torch.sigmoid(vae.decoder(draw_posterior(vae, images)))
        for name, vae in models.items()
    }
    return plotting.image_grid(
        panels, image_shape, caption="means of the pixels given z from q(z | x)"
    )


@torch.no_grad()
def picture_of_dependence(models: Mapping[str, VAE], images: Tensor, sweeps: int) -> Any:
    """Covariances of pairs of bits: what the prior has against what the guide makes of real images."""
    figure = new_figure(3.4 * len(models), 3.3)
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for ax, colour, (name, vae) in zip(axes, COLOURS, models.items(), strict=False):
        posterior, prior = (
            _of_pairs(draws)
            for draws in (draw_posterior(vae, images), draw_prior(vae, _DRAWS, sweeps))
        )
        end = 1.05 * max(posterior.abs().max().item(), prior.abs().max().item())
        ax.axline((0.0, 0.0), slope=1.0, color="0.7", linewidth=1.0)
        ax.scatter(posterior.numpy(), prior.numpy(), s=3, color=colour, alpha=0.4, linewidths=0)
        ax.set(xlim=(-end, end), ylim=(-end, end))
        ax.set_title(TITLES[name], fontsize=10)
        ax.set_xlabel("under q(z), over images", fontsize=9)
        plain(ax)
    axes[0].set_ylabel("under the prior p(z)", fontsize=9)
    annotate(figure, "Covariances of pairs of latent bits", None)
    return figure


def _of_pairs(draws: Tensor) -> Tensor:
    """Covariances of different bits, every pair once."""
    covariance = draws.T.cov()
    return covariance[torch.ones_like(covariance, dtype=torch.bool).triu(1)]


def picture_of_learning(histories: Mapping[str, Sequence[Any]]) -> Any:
    """The bound of the validation images and its parts over epochs; log Z is estimated at each point."""
    named = {TITLES[name]: history for name, history in histories.items()}
    return plotting.learning_curves(named, ["elbo", "reconstruction", "divergence"])
