# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of likelihood: pseudo-likelihood, exact, and by annealed importance sampling."""

import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import (
    LogPartitionWarning,
    deep_log_likelihood,
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    pseudo_log_likelihood,
)
from pyro_ebm.training.metrics.snapshot import DeepSnapshot, RBMSnapshot

__all__ = [
    "ais_log_likelihood",
    "exact_log_likelihood",
    "machines_to_enumerate",
    "pseudo_log_likelihoods",
    "sampled_pseudo_log_likelihood",
]

#: Entries of the table of hidden fields that one chunk of rows may fill.
_CHUNK_ENTRIES = 2**22
#: Not the seed of the rows' own bits, or which units are looked at would depend on their states.
_UNITS_SEED = 271_828_182


def pseudo_log_likelihoods(s: RBMSnapshot, num_units: int | None) -> dict[str, Any]:
    r"""Mean over rows of the pseudo-log-likelihood :math:`\sum_i \log p(v_i \mid v_{-i})`, in nats.

    The logarithm is taken row by row and unit by unit, and averaged afterwards. Exact over all units
    (V + 1 products of a row with the weights, done cheaply: rows times V times H exponentials); or, with
    ``num_units`` = K, the sum over K units drawn for every row, times V / K, which is right on average. The
    same units are drawn at every epoch.
    """
    record = {}
    for split, rows in s.rows.items():
        if num_units is None or num_units >= rows.shape[1]:
            values = pseudo_log_likelihood(s.dist, rows)
        else:
            generator = Generator(device=rows.device).manual_seed(_UNITS_SEED)
            values = sampled_pseudo_log_likelihood(s.dist, rows, num_units, generator)
        record[f"pseudo_log_likelihood_{split}"] = values.mean().item()
    return record


def sampled_pseudo_log_likelihood(
    dist: RBM, data: Tensor, num_units: int, generator: Generator
) -> Tensor:
    r"""An estimate of the pseudo-log-likelihood from some units of every row,
    :math:`\frac{V}{K} \sum_{i \in S_n} \log p(v_{ni} \mid v_{n, -i})`.

    :param RBM dist: a machine whose visible units are bits or spins.
    :param Tensor data: shape ``(rows, V)``.
    :param int num_units: K, the size of the sets :math:`S_n`, which are drawn without replacement.
    :param torch.Generator generator: draws them.
    :returns: shape ``(rows,)``.
    """
    form = dist.canonical()
    low, high = dist.visible.unit_states().flatten()
    size = data.shape[1]
    results = []
    for v in data.split(max(1, _CHUNK_ENTRIES // (num_units * dist.hidden.size))):
        noise = torch.rand(v.shape, device=v.device, generator=generator)
        units = noise.topk(num_units, dim=1).indices
        # A unit of two states that is not in the one is in the other.
        change = low + high - 2.0 * v.gather(1, units)
        field = torch.addmm(form.hidden_bias, v, form.weight)
        other = field.unsqueeze(1) + change.unsqueeze(2) * form.weight[units]
        log_ratio = change * form.visible_bias[units]
        log_ratio = log_ratio + dist.hidden.natural_log_partition(other)
        log_ratio = log_ratio - dist.hidden.natural_log_partition(field).unsqueeze(1)
        log_p = torch.nn.functional.logsigmoid(-log_ratio)
        results.append(log_p.sum(1) * (size / num_units))
    return torch.cat(results)


def exact_log_likelihood(s: RBMSnapshot | DeepSnapshot, max_states: int) -> dict[str, Any]:
    r"""Mean log-likelihood :math:`-F(v) - \log Z` with the exact :math:`\log Z`, in nats.

    For machines one layer of which has at most ``max_states`` states: a product of all of them with the
    weights, in float64. Of a deep machine these are all even or all odd layers, and the hidden layers given
    a row are summed in the same way, for every row: far below 2^20 states where there are many rows.
    """
    machine = s.dist if isinstance(s, RBMSnapshot) else s.dist.bipartite()
    log_z = exact_log_partition(machine, max_states=max_states)
    record: dict[str, Any] = {"exact_log_partition": log_z.item()}
    for split, rows in s.rows.items():
        if isinstance(s, RBMSnapshot):
            values = log_likelihood(s.dist, rows, log_z)
        else:
            values = deep_log_likelihood(s.dist, rows, log_z, "exact", max_states=max_states).rows
        record[f"exact_log_likelihood_{split}"] = values.mean().item()
    return record


def machines_to_enumerate(dist: RBM | DBM) -> list[RBM]:
    """The machines whose log Z the exact log-likelihood of a machine takes."""
    if isinstance(dist, RBM):
        return [dist]
    machines = [dist.bipartite()]
    if dist.depth > 1:
        v = dist.units[0].mean(dist.weights[0].new_zeros(dist.sizes[0]))
        machines.append(dist.posterior(v).bipartite())
    return machines


def ais_log_likelihood(
    s: RBMSnapshot | DeepSnapshot, num_chains: int, num_temperatures: int, seed: int
) -> dict[str, Any]:
    r"""Mean log-likelihood :math:`-F(v) - \log \hat Z` with :math:`\hat Z` by annealed importance
    sampling from the training rows' means, in nats.

    :math:`\log \hat Z` is too low in expectation, so that the log-likelihood errs to the side that the record
    names, "above": the more, the fewer chains and temperatures. The standard error is that of
    :math:`\log \hat Z` by the jackknife, for the rows as they are, and ``ais_ess`` the effective number of
    chains; where that is a small part of ``num_chains``, trust neither. The generator is the metric's own,
    with the same seed at every epoch. Costs ``num_chains * num_temperatures`` sweeps.

    Of a deep machine the mean-field bound stands for :math:`-F(v)`. It is too low, so that what is recorded
    errs to neither side for sure (the side is None): below by the gap of the bound, above by that of
    :math:`\log \hat Z`. Annealed are all even layers or all odd ones.
    """
    deep = isinstance(s, DeepSnapshot)
    machine = s.dist if isinstance(s, RBMSnapshot) else s.dist.bipartite()
    base = s.rows["train"].mean(0) if isinstance(s, RBMSnapshot) else s.even_mean()
    with warnings.catch_warnings():
        # It would come at every epoch of the early ones; what it says is in the effective size.
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(
            machine,
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            base=base,
            seed=seed,
        )
    record: dict[str, Any] = {}
    for split, rows in s.rows.items():
        if isinstance(s, RBMSnapshot):
            values = log_likelihood(s.dist, rows, estimate)
        else:
            values = -s.free_energy(split).double() - estimate.value
        record[f"ais_log_likelihood_{split}"] = values.mean().item()
    return record | {
        "ais_log_likelihood_std_error": estimate.std_error.item(),
        "ais_log_likelihood_side": None if deep and s.module.depth > 1 else "above",
        "ais_log_partition": estimate.value.item(),
        "ais_ess": estimate.ess.item(),
    }
