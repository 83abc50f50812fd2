# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients of an RBM where every row is a machine of the units that it has."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import GibbsSweep, absent_free_energy
from pyro_ebm.distributions.absent_units import check_can_be_absent
from pyro_ebm.infer import absent_log_partition
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.negative_phase import GibbsPhase

__all__ = ["AbsentExactGradient", "AbsentGradient"]


class AbsentGradient(ContrastiveGradient):
    r"""The gradient of contrastive divergence of machines that share their weights.

    A row n has the units :math:`o_n`; others are no part of its machine,

    .. math::
        p(v_{o}) = \frac1{Z_o} \sum_h \exp\Bigl(c^\top h + \sum_{i \in o} v_i (b_i + W_i h)\Bigr),

    whose normaliser depends on what the row has. Statistics of both sides are sums over the row's own
    units, and its negative state is drawn with the same ones by CD-k, so that there are no persistent
    chains: a chain would have to have the units of every row. Salakhutdinov, Mnih and Hinton, *Restricted
    Boltzmann machines for collaborative filtering* (2007).

    Offsets of a centred module are absorbed into the biases before units are taken away: moving them
    changes no probability.

    :param module: the module; its visible units are bits, spins, one-hot groups or counts.
    :param TrainerConfig config: options of the run.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options or a module that cannot have absent units.
    """

    def __init__(
        self, module: nn.RBM, config: TrainerConfig, generator: Generator | None = None
    ) -> None:
        check_can_be_absent(module.visible())
        if config.preconditioner in ("diagonal", "natural"):
            raise ValueError(
                f"preconditioner={config.preconditioner!r} is the geometry of one machine: with "
                "missing='absent' every row is another one"
            )
        super().__init__(module, config, generator)
        self._observed: Tensor | None = None

    def start(self, states: Tensor, observed: Tensor | None) -> None:
        """Take the units of the rows of the data.

        :param Tensor states: not used.
        :param Tensor observed: boolean, shape ``(rows, V)``; all if None.
        """
        self._observed = observed

    @torch.no_grad()
    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: numbers of these rows in the data, on the CPU.
        """
        present = _present(self._observed, rows, batch)
        assert isinstance(self.phase, GibbsPhase)
        self.phase.present = None if present is None else present.to(batch.dtype)
        if present is not None:
            batch = torch.where(present, batch, 0.0)
        super().__call__(batch, rows)


class AbsentExactGradient(ExactGradient):
    r"""The gradient of :math:`\langle F_o(v_o) + \log Z_o \rangle_{data}`, without chains.

    See :class:`AbsentGradient`. The hidden layer is enumerated, for all masks of a batch at once.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :raises ValueError: for a machine that cannot be enumerated or cannot have absent units, or options of
        chains.
    """

    def __init__(self, module: nn.RBM, config: TrainerConfig) -> None:
        check_can_be_absent(module.visible())
        super().__init__(module, config)
        self._observed: Tensor | None = None

    def start(self, states: Tensor, observed: Tensor | None) -> None:
        """See :meth:`AbsentGradient.start`."""
        self._observed = observed

    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """See :meth:`AbsentGradient.__call__`."""
        present = _present(self._observed, rows, batch)
        if present is None:
            super().__call__(batch, rows)
            return
        with torch.enable_grad():
            dist = self.module(validate_args=False)
            free_energy = absent_free_energy(dist, batch, present, validate=False)
            log_z = absent_log_partition(dist, present).to(free_energy.dtype)
            loss = (free_energy + log_z).mean()
        for parameter in self.module.parameters():
            parameter.grad = None
        loss.backward()
        if self.module.centered:
            with torch.no_grad():
                theta = GibbsSweep(dist).hidden_theta(torch.where(present, batch, 0.0))
                self._hidden_mean = dist.hidden.natural_mean(theta).mean(0)


def _present(observed: Tensor | None, rows: Tensor | None, batch: Tensor) -> Tensor | None:
    """Which entries the rows of a batch have."""
    if observed is None:
        return None
    if rows is None:
        raise ValueError("rows must be the numbers of the batch in the data, got None")
    return observed[rows.to(observed.device)].to(batch.device)
