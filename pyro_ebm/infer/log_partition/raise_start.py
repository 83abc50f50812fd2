# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where chains that anneal rows of data in reverse start."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units.joined import join_units
from pyro_ebm.infer.log_partition.likelihood import log_likelihood
from pyro_ebm.infer.log_partition.row_posteriors import RowPosteriors, rows_of_chunk

__all__ = ["DeepRowStart", "RowStart"]


class RowStart:
    """Chains of an RBM start at the rows themselves.

    :param RBM dist: the compact machine.
    :param Tensor data: rows, shape ``(N,) + dist.parameter_batch_shape + (V,)``.
    """

    def __init__(self, dist: RBM, data: Tensor) -> None:
        self._data, self._weight = data, dist.weight
        #: Unnormalised log-probability of all rows, shape ``(N,) + batch_shape``, float64.
        self.log_density = log_likelihood(dist, data, 0.0)

    def draw(
        self, rows: Tensor, num_chains: int, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """States of the chains of some rows, those of a row one after the other, and their unnormalised
        log-probability less the logarithm of the density that they were drawn with."""
        states = self._data[rows].to(self._weight)
        return (
            states.repeat_interleave(num_chains, 0),
            self.log_density[rows].repeat_interleave(num_chains, 0),
        )


class DeepRowStart:
    r"""Chains of a DBM start at a row and even hidden layers drawn from its mean field q.

    For any state :math:`x = (v, x_2, \dots)` of the even layers the estimator of its probability under
    the annealing model is unbiased; with :math:`1 / q(x_2, \dots | v)` as a weight it is so for
    :math:`p_{ann}(v) = \sum_{x_2, \dots} p_{ann}(v, x_2, \dots)`.

    :param DBM dbm: the machine, of at least two hidden layers and without a batch shape.
    :param Tensor data: rows, shape ``(N, V)``.
    """

    def __init__(self, dbm: DBM, data: Tensor) -> None:
        self._dbm = dbm.detach().to(dtype=torch.float64)
        self._machine = self._dbm.bipartite()
        self._hidden = join_units(self._dbm.units[2::2])
        self._dtype = dbm.weights[0].dtype
        self._data = data.to(self._machine.weight)
        #: The mean-field bound of all rows, shape ``(N,)``, float64.
        self.log_density = log_likelihood(dbm, data, 0.0)

    @torch.no_grad()
    def draw(
        self, rows: Tensor, num_chains: int, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`RowStart.draw`, of states of all even layers."""
        v = self._data[rows]
        found = RowPosteriors.chunks(self._dbm, v, rows_of_chunk(self._dbm))
        theta = torch.cat([chunk.hidden_theta for chunk in found])
        v, theta = (x.repeat_interleave(num_chains, 0) for x in (v, theta))
        upper = self._hidden.natural_sample(theta, generator)
        q, _ = self._hidden.tilt(theta - self._hidden.natural_bias)
        log_q = -q.energy(upper) - q.log_partition()
        x = torch.cat([v, upper], -1)
        return x.to(self._dtype), -self._machine.free_energy(x) - log_q
