# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs sweeps of an RBM, the loop under every kernel and objective of the package."""

import math

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.batched_sweep import BatchedSweep
from pyro_ebm.distributions.collapse_rule import CollapseRule
from pyro_ebm.distributions.collapsed_sweep import CollapsedSweep
from pyro_ebm.distributions.rbm import RBM, CanonicalForm
from pyro_ebm.ops.linear import affine

__all__ = ["GibbsSweep"]


class GibbsSweep:
    """An RBM prepared for many sweeps: offsets absorbed, no autograd, no objects per step.

    Parameters are read when the object is made; make a new one after they have changed. Visible
    states have shape ``(..., V)`` with any leading chain axes in front of the machine's batch shape.

    Runs of several sweeps integrate a Gaussian layer out, by :class:`CollapsedSweep`, where that is
    cheaper; the law is the same.

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
        form = CanonicalForm(
            self._visible_bias, self._hidden_bias, self._weight, form.constant.detach()
        )
        self._rule = CollapseRule(self._visible, self._hidden, form, generator)

    def hidden_theta(self, v: Tensor) -> Tensor:
        """Natural parameter of the hidden layer given visible states."""
        return affine(v, self._weight, self._hidden_bias)

    def visible_theta(self, h: Tensor) -> Tensor:
        """Natural parameter of the visible layer given hidden states."""
        return affine(h, self._weight_t, self._visible_bias)

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """Draw the hidden layer given visible states."""
        return self.draw_hidden(self.hidden_theta(v))

    @torch.no_grad()
    def draw_hidden(self, theta: Tensor) -> Tensor:
        """Draw the hidden layer at its natural parameter."""
        return self._hidden.natural_sample(theta, self.generator)

    @torch.no_grad()
    def hidden_mean(self, theta: Tensor) -> Tensor:
        """Mean of the hidden layer at its natural parameter."""
        return self._hidden.natural_mean(theta)

    @torch.no_grad()
    def sample_visible(self, h: Tensor) -> Tensor:
        """Draw the visible layer given hidden states."""
        return self._visible.natural_sample(self.visible_theta(h), self.generator)

    @torch.no_grad()
    def step_visible(self, theta: Tensor) -> Tensor:
        """Visible states after one sweep from the hidden natural parameter of the present ones."""
        return self.sample_visible(self.draw_hidden(theta))

    def run(self, v: Tensor, num_steps: int, *, collapse: bool | None = None) -> Tensor:
        """Visible states after ``num_steps`` sweeps (hidden given visible, then visible).

        :param Tensor v: visible states.
        :param int num_steps: sweeps.
        :param collapse: whether to integrate a Gaussian layer out between the first half of the first
            sweep and the last half of the last; None for what is cheaper.
        :raises ValueError: if ``collapse`` is True and no layer is Gaussian.
        """
        chain = self._rule.choose(math.prod(v.shape[:-1]), num_steps - 1, collapse)
        if chain is not None:
            return self._run_collapsed(chain, self.sample_hidden(v), num_steps)
        if self._weight.dim() > 2 and num_steps > 0:
            layers, biases = (
                (self._visible, self._hidden),
                (self._visible_bias, self._hidden_bias),
            )
            return BatchedSweep(layers, biases, self._weight, self.generator).run(v, num_steps)
        for _ in range(num_steps):
            v = self.sample_visible(self.sample_hidden(v))
        return v

    @torch.no_grad()
    def run_from_theta(
        self, theta: Tensor, num_steps: int, *, collapse: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """At least one sweep from the hidden natural parameter of the present state, see :meth:`run`.

        :returns: what :meth:`step_from_theta` does: the new visible states and their hidden natural
            parameter.
        """
        chain = self._rule.choose(math.prod(theta.shape[:-1]), num_steps - 1, collapse)
        if chain is not None:
            v = self._run_collapsed(chain, self.draw_hidden(theta), num_steps)
            return v, self.hidden_theta(v)
        v, theta = self.step_from_theta(theta)
        for _ in range(num_steps - 1):
            v, theta = self.step_from_theta(theta)
        return v, theta

    def _run_collapsed(self, chain: CollapsedSweep, h: Tensor, num_steps: int) -> Tensor:
        """Visible states after sweeps of which the first has drawn its hidden states already."""
        if self._rule.in_hidden:
            return self.sample_visible(chain.run(h, num_steps - 1))
        return chain.run(self.sample_visible(h), num_steps - 1)

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
    def initial_visible(self, shape: torch.Size) -> Tensor:
        """Draws of the visible layer alone, without the weights: a start for chains.

        :param shape: the full shape of the draws, the event included.
        """
        theta = self._visible.natural_bias.expand(shape)
        return self._visible.natural_sample(theta, self.generator)
