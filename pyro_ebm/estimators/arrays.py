# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Arrays of scikit-learn's users as tensors, block by block where that saves memory."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

__all__ = ["FLOATS", "by_block", "check_labelled_rows", "check_rows", "data_tensor", "values_of"]

#: Types that data keep; all others become the first one.
FLOATS = (np.float64, np.float32)
#: Entries of the widest table that a block of rows makes: 32 MiB in float64.
_BLOCK_ENTRIES = 2**22


def check_rows(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Data as an array or a CSR matrix of floats, with finite values and the right features.

    :param estimator: whose data they are; remembers their features if ``reset``.
    """
    return validate_data(estimator, X, reset=reset, accept_sparse="csr", dtype=FLOATS)


def check_labelled_rows(estimator: Any, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
    """The same with a label for every row."""
    options = {"reset": reset, "accept_sparse": "csr", "dtype": FLOATS}
    X, y = validate_data(estimator, X, y, **options)
    return X, y


def values_of(X: Any) -> Any:
    """The values of data, of a sparse matrix those that it stores: no others are but 0."""
    return X.data if sp.issparse(X) else X


def data_tensor(X: Any) -> Tensor:
    """Data to train on as a tensor on the CPU, without a copy where that is possible.

    A sparse matrix of bits becomes one byte an entry, which the trainer converts batch by batch; one of
    other values becomes dense in its own type.
    """
    if sp.issparse(X):
        bits = bool(np.isin(X.data, (0.0, 1.0)).all())
        return torch.from_numpy((X.astype(np.uint8) if bits else X).toarray())
    X = np.ascontiguousarray(X)
    # torch.from_numpy warns of arrays that cannot be written, such as those that joblib shares.
    return torch.from_numpy(X) if X.flags.writeable else torch.from_numpy(X.copy())


def by_block(
    function: Callable[[Tensor], Tensor], X: Any, like: Tensor, width: int
) -> "np.ndarray[Any, Any]":
    """Results of a function of rows, computed block by block.

    :param function: maps rows to results, a row each.
    :param X: an array or a CSR matrix.
    :param Tensor like: has the dtype and the device that the function wants.
    :param int width: entries of the widest table that the function makes, by row.
    :returns: an array of the dtype of ``X``.
    """
    results = [function(block.to(like)).cpu().numpy() for block in _blocks(X, width)]
    return np.concatenate(results).astype(X.dtype, copy=False)


def _blocks(X: Any, width: int) -> Iterator[Tensor]:
    size = max(1, _BLOCK_ENTRIES // max(width, X.shape[1]))
    for start in range(0, X.shape[0], size):
        rows = X[start : start + size]
        yield data_tensor(rows)
