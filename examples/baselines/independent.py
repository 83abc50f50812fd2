# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Independent units: a neural Boltzmann machine with W = 0, in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["IndependentUnits", "fit_independent"]

#: Bounds of a precision, those of the neural Boltzmann machine.
MIN_PRECISION, MAX_PRECISION = 1e-3, 1e3


@dataclass(frozen=True)
class IndependentUnits:
    """Bits, spins or normal variables that know nothing of each other.

    :param str family: "bernoulli", "ising" or "gaussian".
    :param Tensor loc: log-odds of the upper value, or means, shape ``(V,)``.
    :param Tensor precision: precisions of normal variables, shape ``(V,)``.
    """

    family: str
    loc: Tensor
    precision: Tensor | None = None

    @property
    def num_parameters(self) -> int:
        """Free parameters."""
        return len(self.loc) * (2 if self.family == "gaussian" else 1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-likelihood of rows, shape ``(rows,)``."""
        if self.precision is not None:
            square = self.precision * (y - self.loc).square()
            return 0.5 * (self.precision.log() - math.log(2.0 * math.pi) - square).sum(-1)
        bits = (y + 1.0) / 2.0 if self.family == "ising" else y
        return bits @ logsigmoid(self.loc) + (1.0 - bits) @ logsigmoid(-self.loc)


def fit_independent(y: Tensor, family: str) -> IndependentUnits:
    """Maximum likelihood; rates of bits with one row more of each value (Laplace's rule), so that no
    pixel is impossible.

    :param Tensor y: rows of states, shape ``(rows, V)``.
    :param str family: "bernoulli", "ising" or "gaussian".
    :raises ValueError: for another family.
    """
    if family == "gaussian":
        precision = y.var(0, correction=0).reciprocal().clamp(MIN_PRECISION, MAX_PRECISION)
        return IndependentUnits(family, y.mean(0), precision)
    if family not in ("bernoulli", "ising"):
        raise ValueError(f"family must be 'bernoulli', 'ising' or 'gaussian', got {family!r}")
    bits = (y + 1.0) / 2.0 if family == "ising" else y
    return IndependentUnits(family, torch.logit((bits.sum(0) + 1.0) / (len(y) + 2.0)))
