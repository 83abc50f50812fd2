# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Real features on a common scale."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.estimators.arrays import data_tensor

__all__ = ["Standardizing"]


class Standardizing:
    """Estimators whose visible states are features with mean 0 and variance 1 in the first data.

    One learning rate cannot serve features of different scales.
    """

    mean_: Any
    scale_: Any

    def _learn_scales(self, X: Any, standardize: bool) -> None:
        """Remember means and standard deviations of the first data; 0 and 1 if not asked for."""
        self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if standardize:
            rows = data_tensor(X).double()
            self.mean_ = rows.mean(0).numpy()
            scale = rows.std(0, correction=0).numpy()
            # A feature that does not vary, but for rounding, has no scale.
            constant = scale <= 10.0 * np.finfo(X.dtype).eps * np.abs(self.mean_)
            self.scale_ = np.where(constant, 1.0, scale)

    def _to_states(self, rows: Tensor) -> Tensor:
        return (rows - _like(self.mean_, rows)) / _like(self.scale_, rows)

    def _from_states(self, states: Tensor) -> Tensor:
        return states * _like(self.scale_, states) + _like(self.mean_, states)

    def _log_jacobian(self) -> float:
        return -float(np.log(self.scale_).sum())


def _like(values: Any, tensor: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
