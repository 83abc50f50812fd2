# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A machine in a Pyro model whose other parts are observed: its posterior as a machine."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit

__all__ = ["rbm_posterior"]

#: Model runs that measuring the fields may take.
_MAX_RUNS = 100_000
#: Random states at which linearity is checked. One that a single pair of bits violates is missed with
#: probability (3/4)^40 = 1e-5.
_NUM_CHECKS = 40


@torch.no_grad()
def rbm_posterior(model: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, RBM]:
    r"""The posterior of the one latent site of a model, an RBM with discrete visible units.

    If the rest of the model adds a linear function of the visible states,
    :math:`\ell(v) = t^\top v + \mathrm{const}` (any sum of functions of single units is one: pixel noise,
    say), the posterior is the same machine with the visible field t. The field is measured by
    running the model with one unit after the other in each of its states, then checked at random
    states.

    :param model: the model; all sites but one are observed, and that one is an unnormalised or
        normalised :class:`~pyro_ebm.distributions.RBM`, possibly in plates.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :returns: name of the site and its posterior, unnormalised.
    :raises ValueError: if the latent sites are others than one RBM, its visible units are
        continuous, or the rest of the model is not linear in its states.
    """
    site, rbm = _find_site(model, args, kwargs)
    rows = rbm.batch_shape

    def rest(value: Tensor) -> Tensor:
        """Log-density of the observed sites for every row of the latent one."""
        conditioned = poutine.condition(model, data={site: value})
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        trace.compute_log_prob(lambda name, _: name != site)
        total = value.new_zeros(rows)
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and name != site and not _is_plate(node):
                total = total + _by_row(node["log_prob"], rows, name)
        return total

    start = _random_states(rbm)
    field = _measure_field(rest, rbm.visible, start)
    _check_linear(rest, rbm, start, field)
    return site, rbm.tilt(field)


def _find_site(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, RBM]:
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    latent = {
        name: node["fn"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not _is_plate(node)
    }
    site, rbm = next(iter(latent.items()), ("", None))
    if len(latent) != 1 or not isinstance(rbm, RBM):
        raise ValueError(
            f"BlockGibbs needs a model with one latent site, an RBM; the latent sites are "
            f"{list(latent)}"
        )
    if not rbm.visible.is_discrete:
        raise ValueError(f"site {site!r} has continuous visible units; use HMC or NUTS for it")
    return site, rbm


def _is_plate(node: Any) -> bool:
    return type(node["fn"]).__name__ == "_Subsample"


def _by_row(log_prob: Tensor, rows: torch.Size, name: str) -> Tensor:
    """Sum a log-density over the axes that the latent site does not have."""
    if torch.broadcast_shapes(log_prob.shape, rows) == log_prob.shape:
        return log_prob.sum_to_size(rows)
    raise ValueError(
        f"site {name!r} of shape {tuple(log_prob.shape)} mixes rows of the latent site, whose "
        f"batch shape is {tuple(rows)}"
    )


def _random_states(rbm: RBM) -> Tensor:
    theta = rbm.visible.neutral().natural_bias
    return rbm.visible.natural_sample(theta.expand(rbm.batch_shape + rbm.event_shape))


def _measure_field(rest: Callable[[Tensor], Tensor], unit: Unit, start: Tensor) -> Tensor:
    """Least-squares field of every unit from the log-densities of all of its states."""
    states = unit.unit_states()
    num_states, width = states.shape
    if unit.num_units * num_states > _MAX_RUNS:
        raise ValueError(
            f"{unit.num_units} units of {num_states} states each need more than {_MAX_RUNS} runs "
            "of the model"
        )
    design = torch.cat([states, torch.ones_like(states[:, :1])], 1).double()
    # The minimum-norm solution: one-hot states leave a constant of the field free.
    solve = torch.linalg.pinv(design)[:width]
    fields = []
    for i in range(unit.num_units):
        values = []
        for state in states:
            changed = start.clone()
            changed[..., i * width : (i + 1) * width] = state
            values.append(rest(changed).double())
        fields.append(torch.einsum("dk,k...->...d", solve, torch.stack(values)))
    return torch.cat(fields, -1).to(start.dtype)


def _check_linear(rest: Callable[[Tensor], Tensor], rbm: RBM, start: Tensor, field: Tensor) -> None:
    reference = rest(start) - (field * start).sum(-1)
    for _ in range(_NUM_CHECKS):
        state = _random_states(rbm)
        value, linear = rest(state), reference + (field * state).sum(-1)
        if not torch.allclose(value, linear, rtol=1e-4, atol=1e-3):
            worst = (value - linear).abs().max().item()
            raise ValueError(
                "the rest of the model is not linear in the states of the machine (off by "
                f"{worst:.3g} at a random state), so that block Gibbs would not be exact"
            )
