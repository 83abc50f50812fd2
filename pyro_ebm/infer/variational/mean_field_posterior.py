# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Coordinate ascent for the machine in a model whose other parts are linear in its states."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, MeanField
from pyro_ebm.distributions.mean_field import MeanFieldSolver
from pyro_ebm.distributions.posterior_field import check_options
from pyro_ebm.infer.contrastive.rows import select_machines
from pyro_ebm.infer.mcmc.even_layers import as_rbm
from pyro_ebm.infer.mcmc.posterior import MachinePosterior
from pyro_ebm.infer.mcmc.site_density import SiteDensity
from pyro_ebm.infer.mcmc.site_field import random_states
from pyro_ebm.ops.layers import alternate

__all__ = ["mean_field_posterior"]


@torch.no_grad()
def mean_field_posterior(
    model: Callable[..., Any],
    *args: Any,
    max_updates: int = 1000,
    tolerance: float = 1e-5,
    damping: float = 0.0,
    **kwargs: Any,
) -> MeanField:
    r"""The factorised :math:`q(v)\, q(h)` closest to the posterior of the machine in a model.

    If the rest of the model is linear in the visible states, :math:`\ell(v) = t^\top v + k`, the posterior is
    the machine with the visible field t, and

    .. math::
        \log p(x) = \log \sum_{v, h} e^{-E(v, h) + t^\top v} + k - \log Z
        \ge E_q[-E(v, h) + t^\top v] + H(q) + k - \log Z .

    Coordinate ascent (:class:`~pyro_ebm.distributions.mean_field.MeanFieldSolver`) finds a maximum of the
    bound row by row without a gradient or a draw: the updates of variational message passing [1], with the
    hidden units as part of q. The same q(v) with the hidden units summed out
    (:class:`~pyro_ebm.infer.AutoMeanFieldBoltzmann`) has a bound at least as good, and can start here:
    ``AutoMeanFieldBoltzmann(model, init={"v": posterior.thetas[0]})``.

    Counted in the evidence are the sites that the model visits after the machine and that depend on its
    rows; what it visits before is conditioned on. If log Z of the machine is not attached, it is **not**
    subtracted: the bound is that of :math:`\log p(x) + \log Z`.

    **References**

    [1] *Variational message passing*, John Winn, Christopher Bishop (2005)

    :param model: a model with one latent site, an RBM or DBM with discrete visible units of one family whose
        weights have no batch shape; the rest is linear in its states.
    :param args: arguments of the model.
    :param int max_updates: largest number of updates of a row.
    :param float tolerance: a row has converged when an update changes no natural parameter of the visible
        side by more.
    :param float damping: the part of the way that an update does not go, in [0, 1).
    :param kwargs: keyword arguments of the model.
    :returns: means and natural parameters of **all** layers, the visible one first, shapes
        ``(..., size of layer l)`` by row of the site, and the bound of each row.
    :raises ValueError: for impossible options; if the latent sites are others than one machine, its visible
        units are continuous or of several families, or the rest of the model is not linear in its states.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition, mean_field_posterior
    >>> rbm = BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3))  # no weights: exact
    >>> rbm = rbm.normalize(exact_log_partition(rbm))
    >>> def model(x):
    ...     with pyro.plate("rows", len(x)):
    ...         v = pyro.sample("v", rbm)
    ...         pyro.sample("x", dist.Normal(v, 1.0).to_event(1), obs=x)
    >>> found = mean_field_posterior(model, torch.zeros(2, 4))
    >>> found.means[0].shape, found.bound.shape
    (torch.Size([2, 4]), torch.Size([2]))
    """
    check_options(max_updates, tolerance, damping=damping)
    found_machine = MachinePosterior(model, args, kwargs, kernel="mean_field_posterior")
    density, posterior = found_machine.density, found_machine.as_in_model()
    tilted, rows = as_rbm(posterior), density.rows
    machine = select_machines(tilted, rows, _numbers(rows, tilted)) if rows else tilted
    if machine.weight.dim() > 2:
        raise ValueError(
            f"site {density.name!r} has weights of its own for every row, shape "
            f"{tuple(machine.weight.shape)}; mean_field_posterior takes one weight for all"
        )
    form = machine.canonical()
    theta = form.visible_bias.expand(rows.numel(), -1)
    found = MeanFieldSolver(machine).solve(
        theta, max_updates=max_updates, tolerance=tolerance, damping=damping
    )
    thetas = _by_layer(posterior, found.visible_theta, found.hidden_theta)
    means = _by_layer(
        posterior,
        machine.visible.natural_mean(found.visible_theta),
        machine.hidden.natural_mean(found.hidden_theta),
    )

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(rows + x.shape[1:])

    bound = shaped(found.bound).double() + _constant(density, tilted)
    return MeanField(
        tuple(shaped(mean) for mean in means),
        tuple(shaped(own) for own in thetas),
        bound,
        *(shaped(x) for x in (found.residual, found.converged, found.num_updates)),
    )


def _numbers(rows: torch.Size, machine: RBM) -> Tensor:
    return torch.arange(rows.numel(), device=machine.weight.device)


def _constant(density: SiteDensity, tilted: RBM) -> Tensor:
    """By how much the joint log-density of a row exceeds the tilted machine's, at any state."""
    prior = density.fn
    assert isinstance(prior, RBM)
    v = random_states(prior)
    own = prior.log_prob(v).double() - tilted.log_prob(v).double()
    return own + density.log_density(v)


def _by_layer(machine: RBM | DBM, visible: Tensor, hidden: Tensor) -> list[Tensor]:
    """What belongs to the two sides, by layer of the machine."""
    if isinstance(machine, RBM):
        return [visible, hidden]
    return alternate(
        visible.split(machine.sizes[0::2], -1),
        hidden.split(machine.sizes[1::2], -1),
    )
