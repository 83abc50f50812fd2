# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a path of machines, and a ladder of levels along it, must offer."""

import copy
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

    def with_generator(self, generator: Generator | None) -> "Path":
        """The same path, drawing from another source of random bits."""
        path = copy.copy(self)
        path.generator = generator
        return path

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
        first: int = 0,
        log_weights: Tensor | None = None,
        on_state: Callable[[int, Tensor, Tensor], None] | None = None,
        last_move: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Carry states along the path, in either direction.

        At every temperature the ratio is taken first, at the state that was drawn at the
        temperature before; then the state is moved. (The other order over-estimates Z.)

        :param Tensor v: states drawn at ``betas[0]``, shape ``(num_chains,) + batch_shape + (V,)``.
        :param betas: inverse temperatures, increasing or decreasing.
        :param on_step: called with the step's index and its increments of the log-weights.
        :param transition: moves the states in the place of the path's own block Gibbs sweep.
        :param int first: step to begin with, where an interrupted run goes on.
        :param Tensor log_weights: what the steps before it added up to. Not changed.
        :param on_state: called after every step with the number of steps done, the states and the
            sums of the increments, which go on changing: copy or save what is to be kept.
        :param bool last_move: whether to move the states at ``betas[-1]`` too, which no weight depends on.
            Without, they are those of the temperature before.
        :returns: the states at ``betas[-1]`` and the logarithms of the importance weights (float64),
            whose exponentials have the mean Z(betas[-1]) / Z(betas[0]).
        """
        total = torch.zeros(v.shape[:-1], dtype=torch.float64, device=v.device)
        if log_weights is not None:
            total += log_weights
        fields = self.fields(v, betas[first])
        for i in range(first, len(betas) - 1):
            beta_next = betas[i + 1]
            increment, fields = self.log_ratio(v, fields, betas[i], beta_next)
            total += increment
            if on_step is not None:
                on_step(i, increment)
            if last_move or i < len(betas) - 2:
                if transition is None:
                    v = self.move(fields, beta_next)
                else:
                    v = transition(self.machine(beta_next), v)
                fields = self.fields(v, beta_next)
            if on_state is not None:
                on_state(i + 1, v, total)
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
    def level_log_ratio(self, v: Tensor, fields: Tensor, level: Tensor) -> Tensor:
        r"""Log-density of every state at another level less that at its own,
        :math:`\log p_k(v_l) - \log p_l(v_l)` with :math:`k = \mathrm{level}(l)`, constants included.

        :param Tensor level: a permutation of the levels, shape ``(num_levels,)``.
        :returns: float64, shape of :meth:`log_density`.
        """

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
