# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs sweeps of an RBM, the loop under every kernel and objective of the package."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.ops.linear import affine

__all__ = ["GibbsSweep"]


class GibbsSweep:
    """An RBM prepared for many sweeps: offsets absorbed, no autograd, no objects per step.

    Parameters are read when the object is made; make a new one after they have changed. Visible
    states have shape ``(..., V)`` with any leading chain axes in front of the machine's batch shape.

    :param RBM rbm: the machine.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, rbm: RBM, generator: Generator | None = None) -> None:
        self.generator = generator
        with torch.no_grad():
            form = rbm.canonical()
        self._visible = rbm.visible.map(torch.Tensor.detach)
        self._hidden = rbm.hidden.map(torch.Tensor.detach)
        self._visible_bias = form.visible_bias.detach()
        self._hidden_bias = form.hidden_bias.detach()
        self._weight = form.weight.detach()
        self._weight_t = self._weight.mT
        self._hidden_offset = rbm._hidden_offset
        self._constant = rbm._constant

    def hidden_theta(self, v: Tensor) -> Tensor:
        """Natural parameter of the hidden layer given visible states."""
        return affine(v, self._weight, self._hidden_bias)

    def visible_theta(self, h: Tensor) -> Tensor:
        """Natural parameter of the visible layer given hidden states."""
        return affine(h, self._weight_t, self._visible_bias)

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """Draw the hidden layer given visible states."""
        return self._hidden.natural_sample(self.hidden_theta(v), self.generator)

    @torch.no_grad()
    def sample_visible(self, h: Tensor) -> Tensor:
        """Draw the visible layer given hidden states."""
        return self._visible.natural_sample(self.visible_theta(h), self.generator)

    @torch.no_grad()
    def step_visible(self, theta: Tensor) -> Tensor:
        """Visible states after one sweep from the hidden natural parameter of the present ones."""
        return self.sample_visible(self._hidden.natural_sample(theta, self.generator))

    def run(self, v: Tensor, num_steps: int) -> Tensor:
        """Visible states after ``num_steps`` sweeps (hidden given visible, then visible)."""
        for _ in range(num_steps):
            v = self.sample_visible(self.sample_hidden(v))
        return v

    @torch.no_grad()
    def step_from_theta(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """One sweep from the hidden natural parameter of the present state.

        :returns: the new visible states and their hidden natural parameter, so that free energies
            along a chain cost no product of their own.
        """
        v = self.step_visible(theta)
        return v, self.hidden_theta(v)

    @torch.no_grad()
    def free_energy(self, v: Tensor, theta: Tensor) -> Tensor:
        """Free energy of visible states whose hidden natural parameter is known."""
        hidden = self._hidden
        energy = self._visible.energy(v) - hidden.natural_log_partition(theta)
        energy = energy + hidden.energy_constant
        if self._hidden_offset is not None:
            energy = energy + ((theta - hidden.natural_bias) * self._hidden_offset).sum(-1)
        return energy if self._constant is None else energy + self._constant

    @torch.no_grad()
    def log_density_change(
        self, before: "GibbsSweep", v: Tensor, theta_before: Tensor, theta: Tensor
    ) -> Tensor:
        """Difference of the negative free energies of two machines at the same states, float64.

        For the ratios of an annealing run, which are small differences of large numbers.

        :param GibbsSweep before: the machine to subtract, of the same families and without offsets.
        :param Tensor v: visible states.
        :param Tensor theta_before: their hidden natural parameter under ``before``.
        :param Tensor theta: their hidden natural parameter under this machine.
        """
        exact = v.double()
        ends = (
            sweep.free_energy(exact, field.double())
            for sweep, field in ((before, theta_before), (self, theta))
        )
        return next(ends) - next(ends)

    @torch.no_grad()
    def initial_visible(self, shape: torch.Size) -> Tensor:
        """Draws of the visible layer alone, without the weights: a start for chains.

        :param shape: the full shape of the draws, the event included.
        """
        theta = self._visible.natural_bias.expand(shape)
        return self._visible.natural_sample(theta, self.generator)
