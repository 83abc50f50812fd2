# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A machine in a Pyro model whose other parts are observed: its posterior as a machine."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.mcmc.even_layers import EvenLayersMessenger
from pyro_ebm.infer.mcmc.site_density import (
    SiteDensity,
    initial_trace,
    latent_sites,
)
from pyro_ebm.infer.mcmc.site_field import (
    NUM_CHECKS,
    FixedDifferenceField,
    choose_linear,
    exact_gradients,
    nonlinearity,
    random_states,
    refuse_nonlinear,
)

__all__ = ["MachinePosterior", "machine_density", "rbm_posterior"]


@torch.no_grad()
def rbm_posterior(model: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, RBM | DBM]:
    r"""The posterior of the one latent site of a model, a machine with discrete visible units.

    If the rest of the model adds a linear function of the visible states,
    :math:`\ell(v) = t^\top v + \mathrm{const}` (any sum of functions of single units is one: pixel noise,
    say), the posterior is the same machine with the visible field t. The field is found by derivatives
    where these are the differences between the states of a unit, otherwise by running the model with
    one unit after the other in each of its states; then it is checked at random states.

    :param model: the model; all sites but one are observed, and that one is an unnormalised or
        normalised :class:`~pyro_ebm.distributions.RBM` or :class:`~pyro_ebm.distributions.DBM`, possibly in
        plates.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :returns: name of the site and its posterior, unnormalised: a machine of the same class.
    :raises ValueError: if the latent sites are others than one machine, its visible units are
        continuous, or the rest of the model is not linear in its states.
    """
    posterior = MachinePosterior(model, args, kwargs, kernel="rbm_posterior")
    return posterior.layers.site, posterior.as_in_model()


def machine_density(
    kernel: str, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> SiteDensity:
    """The rest of a model whose one latent site is a machine.

    :param str kernel: name of the kernel that asks, for the message.
    :raises ValueError: if the latent sites are others.
    """
    trace = initial_trace(EvenLayersMessenger()(model), args, kwargs)
    latent = latent_sites(trace)
    if len(latent) != 1 or not isinstance(trace.nodes[latent[0]]["fn"], RBM):
        raise ValueError(
            f"{kernel} needs a model with one latent site, an RBM or DBM; the latent sites are {latent}"
        )
    return SiteDensity(model, latent[0], args, kwargs)


class MachinePosterior:
    """The posterior of the machine in a model, at present values of what the model is conditioned on.

    A compound kernel changes those values between draws; the field is then found by one run of the
    model with a gradient, if that was right at first, and otherwise measured again.

    :param model: the model, see :func:`rbm_posterior`.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param str kernel: name of what asks, for messages.
    :raises ValueError: where :func:`rbm_posterior` does.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        kernel: str = "BlockGibbs",
    ) -> None:
        density = machine_density(kernel, model, args, kwargs or {})
        rbm, unit = _machine(density), density.seen_units
        #: The site and the parts of its state.
        self.layers = density.layers
        if not unit.is_discrete:
            raise ValueError(
                f"{kernel} needs discrete visible units, and site {density.name!r} has continuous ones; use "
                "HMC or NUTS for it, or MetropolisBlockGibbs"
            )
        if len(unit.parts()) > 1:
            raise ValueError(
                f"{kernel} needs visible units of one family, and site {density.name!r} has those of "
                "several families; use MetropolisBlockGibbs"
            )
        #: The rest of the model.
        self.density = density
        self._reference = start = random_states(rbm)
        fixed = FixedDifferenceField(density, unit, start)
        gradients = exact_gradients(density, unit, start)
        checked = random_states(rbm, (NUM_CHECKS,))
        self._field = choose_linear(density, [*gradients, fixed], start, checked) or fixed
        self._local = self._field(start)
        self._check_linear(checked)

    @property
    def machine(self) -> RBM:
        """The posterior, unnormalised; for a deep machine the one between its even and odd layers."""
        return _machine(self.density).tilt(self._local.field)

    def as_in_model(self) -> RBM | DBM:
        """The posterior as a machine of the class that the model has."""
        deep = self.density.deep
        return self.machine if deep is None else deep.tilt(self._local.field[..., : deep.sizes[0]])

    def refresh(self) -> None:
        """Find the field anew: values that the model is conditioned on have changed."""
        self._field.refresh()
        # The run that finds the field also tells the prior, which may depend on other sites.
        self._local = self._field(self._reference)

    def check(self, v: Tensor) -> None:
        """Compare the rest with its linear form at states, and at random ones: other values of the
        other sites may bring terms that were not there when the kernel was set up.

        :param Tensor v: states, shape ``chain_shape + rows + (V,)``.
        :raises ValueError: if they differ.
        """
        # A wrong field can hide itself: it may draw only states for which it is right.
        random = random_states(_machine(self.density), (3 if self.density.runs_chains else 1,))
        self._check_linear(torch.cat([v.reshape(-1, *random.shape[1:]), random]))

    def _check_linear(self, states: Tensor) -> None:
        error = nonlinearity(self.density, self._local, self._reference, states, self._field.slack)
        if error > 0.0:
            refuse_nonlinear(self.layers.site, error)


def _machine(density: SiteDensity) -> RBM:
    assert isinstance(density.fn, RBM)
    return density.fn
