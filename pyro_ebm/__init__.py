# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Boltzmann machines for Pyro."""

__version__ = "0.1.0"
