# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""One mode or many? The spectrum of the coupling that a machine's layers exert on each other."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.diagnostics.tables import significant
from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Multinomial, Unit

__all__ = ["CouplingSpectrum", "coupling_spectrum"]


@dataclass(frozen=True)
class CouplingSpectrum:
    """Eigenvalues of the coupling K of every element of a batch, float64.

    :param Tensor eigenvalues: from the largest down, not negative, shape ``batch_shape + (H,)``.
    """

    eigenvalues: Tensor = field(repr=False)

    @property
    def lambda_max(self) -> Tensor:
        """Largest eigenvalue, shape ``batch_shape``. Below 1 there is one mode."""
        return self.eigenvalues[..., 0]

    @property
    def num_strong(self) -> Tensor:
        """Number of eigenvalues of at least 1, directions along which there can be several modes."""
        return (self.eigenvalues >= 1.0).sum(-1)

    @property
    def one_mode(self) -> Tensor:
        """Whether ``lambda_max`` is below 1, boolean, shape ``batch_shape``."""
        return self.lambda_max < 1.0

    def to_dict(self) -> dict[str, Any]:
        """Largest eigenvalues and their numbers for a report; JSON types only."""
        return {
            "lambda_max": self.lambda_max.tolist(),
            "num_strong": self.num_strong.tolist(),
            "share_one_mode": self.one_mode.double().mean().item(),
        }

    def __str__(self) -> str:
        largest = self.lambda_max.flatten()
        low, high = significant(largest.min().item()), significant(largest.max().item())
        span = low if len(largest) == 1 else f"{low} to {high} ({len(largest)} machines)"
        return f"lambda_max = {span}, below 1 (one mode) in {self.one_mode.double().mean():.0%}"


@torch.no_grad()
def coupling_spectrum(dist: RBM) -> CouplingSpectrum:
    r"""Spectrum of the coupling that hidden units exert on each other through the visible ones,

    .. math:: K = S_h^{1/2} W^\top S_v W S_h^{1/2},

    where S is the largest covariance that a layer can have under any field: the covariance of Gaussian
    units, :math:`1` for Ising, :math:`1/4` for Bernoulli, :math:`1/2` for one-hot groups, half of the total
    count for counts, :math:`1/g` for rectified units. It is :math:`W^\top P^{-1} W` for Gaussian visible and
    Ising hidden units, and a quarter of it for Bernoulli hidden ones.

    Let :math:`\lambda` be the largest eigenvalue.

    - **Gaussian visible units.** The free energy has the Hessian
      :math:`P - W\, \mathrm{Cov}[h | v]\, W^\top`, so that for :math:`\lambda < 1` the density of v is
      log-concave: one mode. For Ising hidden units without bias it is the other way round too: for
      :math:`\lambda > 1` the centre is no mode, and modes come in pairs. Single-site dynamics of the hidden
      Ising model provably mixes fast for :math:`\lambda < 1`, whatever the biases [1].
    - **Any units.** For :math:`\lambda < 1` the mean-field free energy of both layers,
      :math:`-b^\top m_v - c^\top m_h - m_v^\top W m_h - H(m_v) - H(m_h)`, has a Hessian
      :math:`\bigl(\begin{smallmatrix} C_v^{-1} & -W \\ -W^\top & C_h^{-1} \end{smallmatrix}\bigr)` that is
      positive definite everywhere, as no covariance C exceeds S: one solution of the mean-field equations.
      The condition is sufficient; with strong biases there may be one for larger :math:`\lambda` too.

    **References**

    [1] *A spectral condition for spectral gap: fast mixing in high-temperature Ising models*, Ronen Eldan,
    Frederic Koehler, Ofer Zeitouni (2021)

    :param RBM dist: the machine, of any families and batch shape.
    :raises TypeError: if ``dist`` is no RBM.
    :raises ValueError: if the covariance of a family has no bound that is known.

    >>> import torch
    >>> from pyro_ebm.distributions import RBM, units
    >>> visible = units.Gaussian(torch.zeros(1), torch.tensor([4.0]))
    >>> rbm = RBM(visible, units.Ising(torch.zeros(1)), torch.tensor([[3.0]]))
    >>> coupling_spectrum(rbm).lambda_max  # modes near -3/4 and 3/4, of width 1/2
    tensor(2.2500, dtype=torch.float64)
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    machine = dist.compact().to(dtype=torch.float64)
    scaled = _covariance_root("visible", machine.visible, machine.weight)
    scaled = _covariance_root("hidden", machine.hidden, scaled.mT)
    eigenvalues = torch.linalg.svdvals(scaled).square()
    num_hidden = machine.hidden.size
    missing = max(0, num_hidden - eigenvalues.shape[-1])
    # Low-rank covariances give more rows than units, and then as many zeros.
    eigenvalues = torch.nn.functional.pad(eigenvalues, (0, missing))[..., :num_hidden]
    return CouplingSpectrum(eigenvalues.expand(*dist.batch_shape, num_hidden))


def _covariance_root(name: str, unit: Unit, weight: Tensor) -> Tensor:
    """A matrix R with R'R = W'SW, S the largest covariance of the layer."""
    rows = []
    for where, part in unit.parts():
        block = weight[..., where, :]
        if part.is_discrete:
            rows.append(block * math.sqrt(_largest_variance(part)))
            continue
        root = part.covariance_root(block)
        if root is None:
            raise ValueError(
                f"the covariance of the {name} layer, {type(part).__name__}, has no known bound"
            )
        rows.append(root)
    batch = torch.broadcast_shapes(*(row.shape[:-2] for row in rows))
    return torch.cat([row.expand(*batch, *row.shape[-2:]) for row in rows], -2)


def _largest_variance(unit: Unit) -> float:
    """Bound of the variance of a discrete unit in any direction."""
    if isinstance(unit, Multinomial):
        # A sum of independent one-hot units.
        return unit.total_count / 2.0
    states = unit.unit_states()
    # The variance of what lies in an interval is at most the square of half of its length (Popoviciu),
    # and no direction has a longer one than the two states that are farthest from each other.
    return (torch.cdist(states, states).max().item() / 2.0) ** 2
