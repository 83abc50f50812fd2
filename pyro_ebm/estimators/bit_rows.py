# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Data that are bits or rates of bits."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from torch import Generator, Tensor

from pyro_ebm.estimators.arrays import values_of
from pyro_ebm.ops.random import bernoulli

__all__ = ["BitRows", "check_rates"]


class BitRows:
    """Estimators whose visible states are bits, and whose data are these or their rates.

    They have the argument ``clip``.
    """

    clip: bool

    def _check_values(self, X: Any) -> Any:
        return check_rates(X, clip=self.clip)

    def _states_to_score(self, rows: Tensor) -> Tensor:
        # A generator of its own: a score changes nothing, and is the same at every call.
        return bernoulli(rows, Generator(device=rows.device).manual_seed(0))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.positive_only = not self.clip
        return tags


def check_rates(X: Any, *, clip: bool) -> Any:
    """Data with values in [0, 1].

    :param X: an array or a CSR matrix of finite values.
    :param bool clip: whether other values become the nearer end.
    :raises ValueError: for other values.
    """
    values = values_of(X)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if low >= 0.0 and high <= 1.0:
        return X
    if not clip:
        raise ValueError(
            f"X must have values in [0, 1], bits or their rates, got values from {low:g} to {high:g}; "
            "scale the data (MinMaxScaler), or give clip=True"
        )
    if not sp.issparse(X):
        return np.clip(X, 0.0, 1.0)
    X = X.copy()
    X.data = np.clip(X.data, 0.0, 1.0)
    return X
