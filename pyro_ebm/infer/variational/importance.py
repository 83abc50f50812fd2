# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The likelihood of a whole model by importance weighting, with an honest log Z."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition import LogPartitionEstimate
from pyro_ebm.infer.variational.given_log_partition import SiteNormalizer, site_normalizers
from pyro_ebm.infer.variational.model_likelihood import ModelLogLikelihood
from pyro_ebm.infer.variational.particle_runs import ParticleRuns
from pyro_ebm.infer.variational.site_log_partition import SiteLogPartition
from pyro_ebm.infer.variational.weight_stream import RowWeights, WeightStream

__all__ = ["importance_log_likelihood"]

#: Particles of a run where the user has not said how many.
_CHUNK = 100


def importance_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1000,
    log_partition: Any = None,
    plate: str | None = None,
    chunk_size: int | None = None,
    vectorize_particles: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> ModelLogLikelihood:
    r"""Log-likelihood of all observed sites of a model, by importance weighting of its guide's draws.

    .. math::
        \log p(x) = \log E_{q(z)}\left[\frac{p(x, z)}{q(z)}\right] \approx
        \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k)}, \qquad z_k \sim q,

    in expectation a lower bound for every K, at least as good as the ELBO, which is K = 1, and exact for any
    K where q is the posterior [1]. q must cover the posterior: what it never draws is missing from the
    estimate. Machines among the sites, latent or observed, are normalised by the log Z
    that is **given**; its errors go into the result, see
    :class:`~pyro_ebm.infer.ModelLogLikelihood`. An estimate of log Z from below
    (AIS) makes the result too high in expectation, one from above too low: give a bracket, and report its
    two sides.

    Weights are summed in float64, chunk by chunk, so that memory does not grow with ``num_particles``. Log Z
    is that of the machine as it is; it must be estimated anew when its parameters have changed.

    :param model: the model. Its latent sites are those of the guide.
    :param guide: the guide, ``lambda *args: None`` for a model without latent variables.
    :param args: arguments of both.
    :param int num_particles: K, the number of draws; none is drawn for a model without latent variables.
    :param log_partition: log Z of the machines that have none attached: a dict by site, or one for the only
        machine; each an estimate, a bracket, a number, a tensor whose shape broadcasts to the site's batch
        shape (a log Z for every row of a conditional machine), or a function of the machine, such as
        :func:`~pyro_ebm.infer.exact_log_partition`. Where the parameters of a machine depend on latent
        variables, as in a mixture, it must be a function with an exact result. Rows whose estimates are the
        same numbers share their error.
    :param str plate: name of the plate whose elements are the rows: all sites must be in it. The
        log-likelihood of the whole data is one row if None.
    :param int chunk_size: particles of one run; at most 100 if None.
    :param bool vectorize_particles: whether particles of a run are a further plate on the left, as in
        :class:`pyro.infer.ELBO`; otherwise the model runs once a particle.
    :param int seed: makes the result reproducible without touching the global generator.
    :param kwargs: keyword arguments of both.
    :returns: a :class:`~pyro_ebm.infer.ModelLogLikelihood`; those of several
        calls with other rows can be joined.
    :raises ValueError: for impossible numbers; if the latent sites of model and guide differ, the guide draws
        what the model observes or is a point mass of a continuous variable, sites are outside of the plate,
        a model with latent sites is scaled by more than the plate's subsample, a plate takes a random
        subsample, or a machine has no log Z.

    **References**

    [1] *Importance Weighted Autoencoders*, Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2016)

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition, importance_log_likelihood
    >>> rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    >>> x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    >>> def model():
    ...     with pyro.plate("rows", 2):
    ...         v = pyro.sample("v", rbm)
    ...         pyro.sample("x", dist.Bernoulli(0.1 + 0.8 * v).to_event(1), obs=x)
    >>> def guide():
    ...     with pyro.plate("rows", 2):
    ...         pyro.sample("v", dist.Bernoulli(0.1 + 0.8 * x).to_event(1))  # the posterior
    >>> result = importance_log_likelihood(
    ...     model, guide, num_particles=10, log_partition=exact_log_partition, plate="rows"
    ... )
    >>> result.rows  # three fair bits a row
    tensor([-2.0794, -2.0794], dtype=torch.float64)
    >>> result.weights.ess  # all weights are the same
    tensor([10.0000, 10.0000], dtype=torch.float64)
    """
    chunk_size = min(num_particles, _CHUNK) if chunk_size is None else chunk_size
    for name, number in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {number!r}")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        with torch.no_grad():
            runs = ParticleRuns(model, guide, args, kwargs, plate, vectorize_particles)
            normalizers = site_normalizers(log_partition, runs.machines)
        runs.attach(normalizers)
        counts = runs.counts(normalizers)
        weights = _weights(runs, num_particles, chunk_size)
    sites = [_site(own, counts[name]) for name, own in normalizers.items()]
    settings = {
        "method": "importance",
        "num_particles": 0 if runs.is_observed else num_particles,
        "chunk_size": chunk_size,
        "plate": plate,
        "seed": seed,
        "log_partition": {site.name: dict(site.sides[-1].settings) for site in sites},
    }
    exact = runs.is_observed and not runs.has_bound
    return ModelLogLikelihood.from_weights(weights, sites, settings, exact=exact)


def _weights(runs: ParticleRuns, num_particles: int, chunk_size: int) -> RowWeights:
    if runs.is_observed:
        return RowWeights.of_known(runs.log_weights(1).squeeze(0))
    stream = WeightStream(num_particles)
    for start in range(0, num_particles, chunk_size):
        stream.add(runs.log_weights(min(chunk_size, num_particles - start)))
    return stream.rows()


def _site(own: SiteNormalizer, counts: Tensor) -> SiteLogPartition:
    sides = tuple(_flat(side, own.value.device) for side in own.sides)
    return SiteLogPartition(own.name, sides, counts.reshape(-1))


def _flat(side: LogPartitionEstimate, device: torch.device) -> LogPartitionEstimate:
    """An estimate with one batch axis, without its weights."""
    numbers: dict[str, Any] = {
        name: getattr(side, name).double().reshape(-1).to(device)
        for name in ("value", "std_error", "lower", "upper", "ess")
    }
    return replace(side, **numbers, log_weights=None)
