# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A run in TensorBoard: metrics, histograms and images."""

from pyro_ebm.training.tensorboard.logger import DEEP_IMAGES, IMAGES, TensorBoardLogger

__all__ = ["DEEP_IMAGES", "IMAGES", "TensorBoardLogger"]
