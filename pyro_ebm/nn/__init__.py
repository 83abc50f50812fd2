# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that own the parameters of Boltzmann machines."""

from pyro_ebm.nn.classification_rbm import ClassificationRBM
from pyro_ebm.nn.dbm import DBM
from pyro_ebm.nn.nbm import NeuralBoltzmannMachine
from pyro_ebm.nn.nbm_presets import ConditionalRBM, FactoredConditionalRBM, paper_nbm
from pyro_ebm.nn.paste import paste_rbms, tile_rbm
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.serialization import ModelFileError, load, save
from pyro_ebm.nn.tied_rbm import TiedRBM

__all__ = [
    "DBM",
    "RBM",
    "ClassificationRBM",
    "ConditionalRBM",
    "FactoredConditionalRBM",
    "ModelFileError",
    "NeuralBoltzmannMachine",
    "TiedRBM",
    "load",
    "paper_nbm",
    "paste_rbms",
    "save",
    "tile_rbm",
]
