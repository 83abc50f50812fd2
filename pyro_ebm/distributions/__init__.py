# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Boltzmann machines as Pyro distributions."""

from pyro_ebm.distributions import units
from pyro_ebm.distributions.absent_units import absent_free_energy, absent_machine
from pyro_ebm.distributions.clamped_sweep import ClampedSweep
from pyro_ebm.distributions.collapsed_sweep import CollapsedSweep
from pyro_ebm.distributions.concrete import ConcreteBernoulli, relaxed
from pyro_ebm.distributions.dbm import DBM
from pyro_ebm.distributions.energy_based import EnergyBased, UnnormalizedGradientError
from pyro_ebm.distributions.gibbs_sweep import GibbsSweep
from pyro_ebm.distributions.mean_field import MeanFieldSolution, MeanFieldSolver
from pyro_ebm.distributions.posterior_field import MeanField, MeanFieldWarning
from pyro_ebm.distributions.rbm import RBM, CanonicalForm
from pyro_ebm.distributions.rbm_presets import BernoulliRBM, GaussianBernoulliRBM, IsingRBM
from pyro_ebm.distributions.reduction import reduced_machine

__all__ = [
    "DBM",
    "RBM",
    "BernoulliRBM",
    "CanonicalForm",
    "ClampedSweep",
    "CollapsedSweep",
    "ConcreteBernoulli",
    "EnergyBased",
    "GaussianBernoulliRBM",
    "GibbsSweep",
    "IsingRBM",
    "MeanField",
    "MeanFieldSolution",
    "MeanFieldSolver",
    "MeanFieldWarning",
    "UnnormalizedGradientError",
    "absent_free_energy",
    "absent_machine",
    "reduced_machine",
    "relaxed",
    "units",
]
