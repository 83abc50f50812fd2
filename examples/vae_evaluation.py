# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the autoencoders of ``vae_rbm_prior.py`` are worth: bounds of log p(x), with log Z of the prior."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from vae_model import VAE

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import (
    ModelLogLikelihood,
    bracket_log_partition,
    exact_log_partition,
    importance_log_likelihood,
)

#: log Z of a machine whose smaller layer has at most this many units is summed exactly.
MAX_EXACT_UNITS = 16
#: Images, and particles of each, that are in memory at a time.
_CHUNK, _PARTICLES = 500, 20


@torch.no_grad()
def log_partition(
    vae: VAE,
    images: Tensor,
    chains: int,
    temperatures: int,
    seed: int = 0,
    *,
    exact_units: int = MAX_EXACT_UNITS,
) -> Any:
    """log Z of the prior: exact (zero for independent bits), or from below and from above.

    :param Tensor images: images whose z tell the rates of the base that annealing starts from.
    :param int exact_units: units of the smaller layer up to which log Z is summed.
    :returns: a tensor, or a :class:`~pyro_ebm.infer.LogPartitionBracket`.
    """
    prior = vae.prior()
    if not isinstance(prior, RBM):
        return torch.zeros((), dtype=torch.float64)
    prior = prior.detach()
    if min(prior.weight.shape) <= exact_units:
        return exact_log_partition(prior)
    return bracket_log_partition(
        prior,
        num_chains=chains,
        num_temperatures=temperatures,
        schedule="adaptive",
        base=torch.sigmoid(vae.encoder(images)).mean(0),
        seed=seed,
    )


@torch.no_grad()
def bound_terms(vae: VAE, images: Tensor, log_z: Any, draws: int = 10) -> dict[str, Tensor]:
    r"""The three terms of the evidence lower bound of every image, from draws of the guide.

    :param log_z: log Z of the prior, as :func:`log_partition` gives it; the middle of a bracket counts.
    :returns: ``"reconstruction"``, :math:`E_q \log p(x | z)`; ``"prior"``, :math:`E_q \log p(z)`;
        ``"entropy"``, that of q; shape ``(rows,)`` each.
    """
    q = dist.Bernoulli(logits=vae.encoder(images)).to_event(1)
    z = q.sample((draws,))
    pixels = dist.Bernoulli(logits=vae.decoder(z)).to_event(1)
    prior = vae.prior()
    if isinstance(prior, RBM):
        prior = prior.detach().normalize(torch.as_tensor(getattr(log_z, "value", log_z)))
    return {
        "reconstruction": pixels.log_prob(images).mean(0),
        "prior": prior.log_prob(z).mean(0),
        "entropy": q.entropy(),
    }


def likelihood_bound(vae: VAE, images: Tensor, log_z: Any, particles: int) -> ModelLogLikelihood:
    """The bound of log p(x) by importance weighting of draws of the guide, and its errors.

    :param log_z: log Z of the prior, as :func:`log_partition` gives it; both sides of a bracket count.
    :param int particles: draws of z for an image.
    """
    normalizers = {"z": log_z} if isinstance(vae.prior(), RBM) else None
    parts = [
        importance_log_likelihood(
            vae.model,
            vae.guide,
            rows,
            num_particles=particles,
            log_partition=normalizers,
            plate="images",
            chunk_size=_PARTICLES,
        )
        for rows in images.split(_CHUNK)
    ]
    return ModelLogLikelihood.join(parts)


def summary(terms: dict[str, Tensor]) -> dict[str, float]:
    """Means over images of the bound, of its first term, and of the divergence of q from the prior."""
    means = {name: rows.double().mean().item() for name, rows in terms.items()}
    divergence = -means["prior"] - means["entropy"]
    return {
        "elbo": means["reconstruction"] - divergence,
        "reconstruction": means["reconstruction"],
        "divergence": divergence,
        "entropy": means["entropy"],
    }
