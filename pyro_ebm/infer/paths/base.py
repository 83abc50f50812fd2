# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a path of machines, and a ladder of levels along it, must offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM

__all__ = ["Ladder", "Path", "Transition"]

#: Moves states, shape ``(chains,) + batch_shape + (V,)``, and leaves the given machine invariant.
Transition = Callable[[RBM, Tensor], Tensor]


class Path(ABC):
    r"""Machines with unnormalised densities :math:`p^*_\beta(v)`, hidden layers summed out.

    Between two neighbouring :math:`\beta` only three things are asked for: the ratio of the densities at a
    state, a move that leaves one of them invariant, and the ``fields`` that both share (whatever
    depends on the state and costs a matrix product), so that no product is done twice.

    :param RBM target: the machine at :math:`\beta = 1`.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, target: RBM, generator: Generator | None = None) -> None:
        self.target = target
        self.generator = generator

    @property
    def batch_shape(self) -> Size:
        """Batch shape of the parameters."""
        return self.target.parameter_batch_shape

    @property
    def num_visible(self) -> int:
        """Entries V of a visible state."""
        return int(self.target.event_shape[0])

    @property
    @abstractmethod
    def log_partition_base(self) -> Tensor:
        """Exact log Z at beta = 0, shape ``batch_shape``, float64."""

    @abstractmethod
    def sample_base(self, num_chains: int) -> Tensor:
        """Exact draws at beta = 0, shape ``(num_chains,) + batch_shape + (V,)``."""

    @abstractmethod
    def machine(self, beta: float) -> RBM:
        """The machine at ``beta``, whose ``log_prob`` is :math:`\\log p^*_\\beta`."""

    @abstractmethod
    def ladder(self, betas: Sequence[float]) -> "Ladder":
        """The machines at several values of beta as one ladder, level 0 being the first."""

    @abstractmethod
    def fields(self, v: Tensor, beta: float) -> Tensor:
        """What ``log_ratio`` and ``move`` need to know of a state at ``beta``."""

    @abstractmethod
    def log_ratio(
        self, v: Tensor, fields: Tensor, beta: float, beta_next: float
    ) -> tuple[Tensor, Tensor]:
        r""":math:`\log p^*_{\beta'}(v) - \log p^*_\beta(v)` up to the change of :meth:`constant`, and the
        fields at ``beta_next``."""

    @abstractmethod
    def move(self, fields: Tensor, beta: float) -> Tensor:
        """One block Gibbs sweep that leaves the machine at ``beta`` invariant.

        :param Tensor fields: those of the present state at ``beta``.
        :returns: the new visible states.
        """

    @abstractmethod
    def constant(self, beta: float) -> Tensor:
        """The part of the log-density that does not depend on the state, float64."""

    @torch.no_grad()
    def step(self, v: Tensor) -> Tensor:
        """One sweep at the target itself."""
        return self.move(self.fields(v, 1.0), 1.0)

    @torch.no_grad()
    def anneal(
        self,
        v: Tensor,
        betas: Sequence[float],
        on_step: Callable[[int, Tensor], None] | None = None,
        *,
        transition: Transition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Carry states along the path, in either direction.

        At every temperature the ratio is taken first, at the state that was drawn at the
        temperature before; then the state is moved. (The other order over-estimates Z.)

        :param Tensor v: states drawn at ``betas[0]``, shape ``(num_chains,) + batch_shape + (V,)``.
        :param betas: inverse temperatures, increasing or decreasing.
        :param on_step: called with the step's index and its increments of the log-weights.
        :param transition: moves the states in the place of the path's own block Gibbs sweep.
        :returns: the states at ``betas[-1]`` and the logarithms of the importance weights (float64),
            whose exponentials have the mean Z(betas[-1]) / Z(betas[0]).
        """
        total = torch.zeros(v.shape[:-1], dtype=torch.float64, device=v.device)
        fields = self.fields(v, betas[0])
        for i in range(len(betas) - 1):
            beta_next = betas[i + 1]
            increment, fields = self.log_ratio(v, fields, betas[i], beta_next)
            total += increment
            if on_step is not None:
                on_step(i, increment)
            if transition is None:
                v = self.move(fields, beta_next)
            else:
                v = transition(self.machine(beta_next), v)
            fields = self.fields(v, beta_next)
        return v, total + self.constant(betas[-1]) - self.constant(betas[0])


class Ladder(ABC):
    """Several machines over the same visible layer, their states in one tensor.

    States have shape ``chain_shape + (num_levels,) + batch_shape + (V,)``, level 0 first; ``fields`` are
    whatever depends on the states and costs a matrix product.

    :param int num_levels: machines in the ladder, at least 2.
    :param batch_shape: batch shape of their parameters.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(
        self, num_levels: int, batch_shape: Size, generator: Generator | None = None
    ) -> None:
        if num_levels < 2:
            raise ValueError(f"a ladder needs at least 2 levels, got {num_levels}")
        self.num_levels = num_levels
        self.batch_shape = batch_shape
        self.generator = generator

    @property
    def level_axis(self) -> int:
        """Axis of the levels in numbers of a state (shape ``(..., num_levels) + batch_shape``)."""
        return -1 - len(self.batch_shape)

    @abstractmethod
    def initial(self, chain_shape: Size) -> Tensor:
        """States of every level drawn without its weights, a start for chains."""

    @abstractmethod
    def fields(self, v: Tensor) -> Tensor:
        """Fields of states at their own levels."""

    @abstractmethod
    def sweep(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """One block Gibbs sweep of every level at its own machine; the new states and fields."""

    @abstractmethod
    def log_density(self, v: Tensor, fields: Tensor) -> Tensor:
        """Unnormalised log-density of states at their own levels, constants included."""

    @abstractmethod
    def log_density_table(self, v: Tensor, fields: Tensor) -> Tensor:
        """Unnormalised log-density of every state at every level, float64, shape
        ``(num_levels,) + chain_shape + (num_levels,) + batch_shape``: the first axis is the level of
        the density, the one after the chains that of the state."""

    @abstractmethod
    def swap_log_ratio(
        self, v: Tensor, fields: Tensor, partner: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        r"""Logarithm of the Metropolis ratio for exchanging states between levels,

        .. math:: \log \frac{p_k(v_l)\, p_l(v_k)}{p_l(v_l)\, p_k(v_k)}, \qquad k = \mathrm{partner}(l),

        the same number for both members of a pair and zero where ``partner[l] = l``.

        :param Tensor partner: level that each level exchanges with, shape ``(num_levels,)``.
        :returns: the log-ratios, and the fields that exchanged states would have (at each level, of
            its partner's state), None if fields do not depend on the level.
        """

    def exchange(
        self,
        v: Tensor,
        fields: Tensor,
        exchanged_fields: Tensor | None,
        accept: Tensor,
        partner: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """States and fields after the accepted exchanges (``accept`` of both members of a pair)."""
        new_v = self.take(v, accept, partner)
        if exchanged_fields is None:
            return new_v, self.take(fields, accept, partner)
        return new_v, torch.where(accept.unsqueeze(-1), exchanged_fields, fields)

    def take(self, x: Tensor, accept: Tensor, partner: Tensor) -> Tensor:
        """Rows of ``x`` (shape ``accept.shape + (n,)``) from the partner's level where accepted."""
        rows = torch.arange(accept.numel(), device=x.device).view(accept.shape)
        source = torch.where(accept, rows.index_select(self.level_axis, partner), rows)
        return x.reshape(-1, x.shape[-1]).index_select(0, source.view(-1)).view(x.shape)
