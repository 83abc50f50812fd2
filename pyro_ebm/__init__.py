# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Boltzmann machines for Pyro."""

from pyro_ebm import datasets, distributions, infer, nn, training
from pyro_ebm.nn import load, save

__version__ = "0.1.0"

__all__ = ["__version__", "datasets", "distributions", "infer", "load", "nn", "save", "training"]
