# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Contrastive divergence as a Pyro loss."""

from pyro_ebm.infer.contrastive.loss import ContrastiveDivergence

__all__ = ["ContrastiveDivergence"]
