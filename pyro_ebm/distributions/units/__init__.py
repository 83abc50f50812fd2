# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Unit families: what a layer of a Boltzmann machine is made of.

A family is an energy :math:`u(x)` and its log-partition under an extra field,
:math:`\\Gamma(t) = \\log \\sum_x \\exp(-u(x) + t^\\top x)`; every model of the package follows from these.
To add one, subclass :class:`Unit`.
"""

from pyro_ebm.distributions.units.base import Unit
from pyro_ebm.distributions.units.continuous import Gaussian, ReLU
from pyro_ebm.distributions.units.discrete import Bernoulli, Categorical, Ising, Multinomial
from pyro_ebm.distributions.units.low_rank_gaussian import LowRankGaussian
from pyro_ebm.distributions.units.mixed import Mixed
from pyro_ebm.distributions.units.tied import TiedCopies

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Ising",
    "LowRankGaussian",
    "Mixed",
    "Multinomial",
    "ReLU",
    "TiedCopies",
    "Unit",
]
