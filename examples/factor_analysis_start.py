# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A low-rank Gaussian neural Boltzmann machine that starts at the factor analysis of every class."""

import torch
from baselines.factor_analysis import fit_factor_analysis
from torch import Tensor

from pyro_ebm import nn

_BOUNDS = {"min_precision": 1e-3, "max_precision": 1e3}
#: Distance of log P from its upper bound, which the smooth bound reaches only at infinity.
_MARGIN = 0.01


@torch.no_grad()
def start_at_factor_analysis(
    model: nn.NeuralBoltzmannMachine, rows: Tensor, labels: Tensor
) -> nn.NeuralBoltzmannMachine:
    """Set the visible layer to the factor analysis of each class, by expectation maximisation.

    Far better than gradient steps from small random factors. The networks must be tables: affine in
    one-hot classes (``hidden_sizes=()``).

    :param model: a model with "low-rank-gaussian" visible units.
    :param Tensor rows: shape ``(rows, V)``.
    :param Tensor labels: the classes, shape ``(rows,)``.
    """
    options = model.config()["visible_options"]
    low, high = (torch.tensor(options.get(n, d)).log() for n, d in _BOUNDS.items())
    tables = {name: getattr(model, name) for name in ("loc", "log_precision", "cov_factor")}
    for table in tables.values():
        table.bias.zero_()
    for k in range(model.num_context):
        found = fit_factor_analysis(rows[labels == k], options["rank"], min_variance=1e-3)
        target = found.noise.log().neg().clamp(low + _MARGIN, high - _MARGIN)
        # The inverse of the smooth upper bound; the lower one is far away.
        tables["log_precision"].weight[:, k] = high - torch.expm1(high - target).log()
        tables["loc"].weight[:, k] = found.loc.to(tables["loc"].weight)
        tables["cov_factor"].weight[:, k] = found.loadings.flatten().to(tables["loc"].weight)
    return model
