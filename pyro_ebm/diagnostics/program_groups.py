# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What ArviZ wants of a Pyro program beside the draws: predictions, log-likelihoods, the prior."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_ebm.diagnostics.inference_data import draws_of
from pyro_ebm.distributions import DBM
from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.mcmc.site_density import initial_trace, latent_sites

__all__ = ["program_groups"]


@torch.no_grad()
def program_groups(
    posterior: Any,
    model: Callable[..., Any],
    *args: Any,
    num_prior_samples: int = 0,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    parallel: bool = False,
    **kwargs: Any,
) -> dict[str, dict[str, Tensor]]:
    r"""The groups ``posterior_predictive``, ``log_likelihood``, ``observed_data``, ``prior`` and
    ``prior_predictive`` of a Pyro model, for :func:`to_inference_data`.

    The log-likelihood is pointwise, :math:`\log p(x_n \mid \theta_s)` by draw and row, without
    ``poutine.scale``. It is **conditional on every latent site**: where rows have latent variables of their
    own (a clean image under each noisy one), ``az.loo`` on it leaves out a row but keeps the latent variable
    that this row alone has taught, and its Pareto k warn. Sum such variables out first
    (:func:`~pyro_ebm.infer.rbm_posterior` makes the machine whose log Z does).

    :param posterior: a :class:`pyro.infer.MCMC` or :class:`~pyro_ebm.infer.VectorizedMCMC` after ``run()``,
        or a mapping of latent sites to draws of shape ``(chains, draws, ...)``. Names that are no sites
        of the model (further layers of a deep machine) are left out.
    :param model: the model, with its observations.
    :param args: arguments of the model.
    :param int num_prior_samples: draws from the prior; none if 0.
    :param bool posterior_predictive: whether to draw observed sites given every draw.
    :param bool log_likelihood: whether to compute the log-likelihood of every observed site.
    :param bool parallel: whether the model can run many draws at once, in a plate on the left (see
        :class:`pyro.infer.Predictive`); otherwise it runs once a draw.
    :param kwargs: keyword arguments of the model.
    :returns: tensors by group and site, shape ``(chains, draws, ...)``.
    :raises ValueError: if the model observes nothing or takes random subsamples, a latent site has no draws
        or another number of them, or ``log_likelihood`` is asked of rows that are masked out, of a deep
        machine, or of a machine without log Z, whose values would be comparable neither between draws nor
        between models.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.diagnostics import program_groups, to_inference_data
    >>> def model(x):
    ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    ...     with pyro.plate("rows", len(x)):
    ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
    >>> draws = {"scale": torch.rand(2, 30) + 0.5}
    >>> groups = program_groups(draws, model, torch.randn(7), num_prior_samples=10)
    >>> groups["log_likelihood"]["x"].shape, groups["prior_predictive"]["x"].shape
    (torch.Size([2, 30, 7]), torch.Size([1, 10, 7]))
    >>> idata = to_inference_data(draws, groups=groups)
    """
    trace = initial_trace(model, args, kwargs)
    observed = [name for name in trace.observation_nodes if not _is_factor(trace.nodes[name])]
    if not observed:
        raise ValueError("model observes nothing: there is nothing to predict")
    draws = _flat_draws(posterior, trace)
    shape = next(iter(draws.values())).shape[:2]
    flat = {name: values.flatten(0, 1) for name, values in draws.items()}
    groups: dict[str, dict[str, Tensor]] = {
        "observed_data": {name: torch.as_tensor(trace.nodes[name]["value"]) for name in observed}
    }
    if posterior_predictive:
        drawn = _predict(model, flat, None, observed, parallel, args, kwargs)
        groups["posterior_predictive"] = {n: _by_chain(x, shape) for n, x in drawn.items()}
    if log_likelihood:
        values = _log_likelihood(model, flat, observed, args, kwargs)
        groups["log_likelihood"] = {n: _by_chain(x, shape) for n, x in values.items()}
    if num_prior_samples:
        sites = [*flat, *observed]
        prior = _predict(model, None, num_prior_samples, sites, parallel, args, kwargs)
        # Pyro keeps an axis for the plates, also at sites outside of them.
        nodes: dict[str, Any] = trace.nodes
        of_chain = {n: x.reshape(1, -1, *nodes[n]["value"].shape) for n, x in prior.items()}
        groups["prior"] = {name: of_chain[name] for name in flat}
        groups["prior_predictive"] = {name: of_chain[name] for name in observed}
    return groups


def _is_factor(node: Mapping[str, Any]) -> bool:
    """``pyro.factor`` and ``pyro.deterministic`` are observed sites too, but no data."""
    return type(node["fn"]).__name__ in ("Unit", "MaskedDistribution") and (
        node["infer"].get("_deterministic", False) or node["value"].numel() == 0
    )


def _flat_draws(posterior: Any, trace: poutine.Trace) -> dict[str, Tensor]:
    draws = {name: torch.as_tensor(values) for name, values in draws_of(posterior).items()}
    latent = latent_sites(trace)
    missing = [name for name in latent if name not in draws]
    if missing:
        raise ValueError(
            f"posterior has no draws of the latent sites {missing}, only {list(draws)}"
        )
    if not latent:
        raise ValueError("model has no latent sites: there is no posterior")
    shapes = {name: tuple(draws[name].shape[:2]) for name in latent}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"numbers of chains and draws differ: {shapes}")
    return {name: draws[name] for name in latent}


def _by_chain(values: Tensor, shape: Sequence[int]) -> Tensor:
    return values.reshape(*shape, *values.shape[1:])


def _predict(
    model: Callable[..., Any],
    draws: dict[str, Tensor] | None,
    num_samples: int | None,
    sites: list[str],
    parallel: bool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Draws of sites by Pyro, the observations forgotten."""
    predictive = Predictive(
        poutine.uncondition(model),
        posterior_samples=draws,
        num_samples=num_samples,
        return_sites=sites,
        parallel=parallel,
    )
    result: dict[str, Tensor] = predictive(*args, **kwargs)
    return result


def _log_likelihood(
    model: Callable[..., Any],
    draws: dict[str, Tensor],
    observed: list[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Log-probabilities of observed rows, one run of the model a draw."""
    values: dict[str, list[Tensor]] = {name: [] for name in observed}
    for s in range(len(next(iter(draws.values())))):
        state = {name: x[s] for name, x in draws.items()}
        trace = poutine.trace(poutine.condition(model, data=state)).get_trace(*args, **kwargs)
        for name in observed:
            values[name].append(_rows_of(name, trace.nodes[name]))
    return {name: torch.stack(rows) for name, rows in values.items()}


def _rows_of(name: str, node: Mapping[str, Any]) -> Tensor:
    """Log-probabilities of the rows of a site.

    :raises ValueError: if they would be no likelihoods, or not of all rows.
    """
    machine = wrapped_machine(node["fn"])
    if machine is not None and machine.log_partition is None:
        raise ValueError(
            f"site {name!r} is a machine without log Z, whose log-likelihood is not comparable between "
            "draws or models; attach it: machine.normalize(exact_log_partition(machine)), or an estimate"
        )
    if isinstance(machine, DBM) and machine.depth > 1:
        raise ValueError(
            f"site {name!r} is a deep machine, whose log_prob is a bound with a gap that differs between "
            "rows; say log_likelihood=False"
        )
    if node["mask"] is not None and not bool(torch.as_tensor(node["mask"]).all()):
        raise ValueError(
            f"site {name!r} has rows that are masked out, which ArviZ would count as observed; give the "
            "model the other rows alone, or say log_likelihood=False"
        )
    log_prob: Tensor = node["fn"].log_prob(node["value"])
    return log_prob
