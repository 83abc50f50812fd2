# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Weights that start as principal components of the data."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.initialization import assign_about, check_rows
from pyro_ebm.nn.unit_parameters import check_seed_and_dtype

if TYPE_CHECKING:
    from pyro_ebm.nn.rbm import RBM

__all__ = ["init_from_components"]

#: Smallest variance of the noise of Gaussian units, as a part of the mean variance of the data, which may
#: have no more directions than components.
_MIN_VARIANCE = 1e-3
#: Eigenvalues below this part of the largest one are rounding.
_RANK_TOLERANCE = 1e-10
#: Default limit of the standard deviation of fields: a sigmoid is straight over most of it.
_MAX_FIELD_STD = 2.0


def init_from_components(
    module: "RBM", data: Tensor, *, max_field_std: float | None = None, seed: int | None = None
) -> "RBM":
    r"""Set a module to principal components of the data; its method
    :meth:`~pyro_ebm.nn.RBM.init_from_components` is the way to call this.

    The visible layer gets the statistics of the data, hidden biases and couplings are set about the means
    (hidden units at zero bias, visible ones at their averages), and hidden unit j gets

    .. math:: w_j = \sqrt{(1 - 1 / \lambda_j) / s_j} \; D^{-1/2} u_j,

    where :math:`u_j` and :math:`\lambda_j` are eigenvectors and eigenvalues, largest first, of the
    covariance of :math:`D^{-1/2} (v - \bar v)`, the diagonal D holds the variances of the visible units
    and :math:`s_j` is the variance of the hidden unit, both without couplings. This is the machine whose
    covariance, to second order in the weights, is that of the data along the components [1]. A component
    that varies no more than the visible units do by themselves, :math:`\lambda_j \le 1`, gets no weight.

    **Gaussian visible units** get one variance :math:`\sigma^2 = D_{ii}`, the mean of the eigenvalues of
    the data's covariance that are left out. With Gaussian hidden units the machine then **is**
    probabilistic principal component analysis at its maximum of the likelihood [2].

    With hidden bits, a large weight saturates: the field :math:`w_j^\top (v - \bar v)` of a strong component
    has a standard deviation of :math:`\sqrt{(\lambda_j - 1) / s_j}` over the data. It is limited to
    ``max_field_std`` by a smaller weight.

    Signs are such that the largest entry of a component is positive. Hidden units for which no component
    is left get random weights of the standard deviation ``weight_scale``. The eigenvectors are exact, of the
    smaller of the two matrices with a row for each visible unit or each row of data.

    **References**

    [1] *High-dimensional inference with the generalized Hopfield model: principal component analysis and
    corrections*, Simona Cocco, Remi Monasson, Vitor Sessak (2011)

    [2] *Probabilistic principal component analysis*, Michael Tipping, Christopher Bishop (1999)

    :param RBM module: the module.
    :param Tensor data: shape ``(rows, num_visible)``, at least 2 rows.
    :param float max_field_std: the limit; None for none of Gaussian hidden units and 2 of others.
    :param int seed: seed of random weights; the global generator if None.
    :returns: the module.
    """
    data = check_rows(module.weight, data)
    if len(data) < 2:
        raise ValueError(f"principal components need at least 2 rows of data, got {len(data)}")
    limit = _limit(module, max_field_std)
    check_seed_and_dtype(seed, None)
    module.visible.init_from_data(data)
    module.hidden.assign(module.hidden().neutral())
    mean, weight = data.mean(0), module.get_parameter("weight")
    centred = data - mean
    variance, values, vectors = _components(module, centred)
    norms = ((1.0 - 1.0 / values.clamp(min=1.0)) / _variance(module.hidden())[: len(values)]).sqrt()
    norms = torch.minimum(norms, limit * values.rsqrt())
    generator = None
    if seed is not None:
        generator = Generator(device=weight.device).manual_seed(seed)
    weight.normal_(0.0, module.weight_scale, generator=generator)
    used = torch.nonzero(norms > 0.0).flatten()
    weight[:, used] = (variance.rsqrt().unsqueeze(-1) * vectors * norms)[:, used]
    hidden_mean = module.hidden().mean()
    if module.centered:
        module.visible_offset.copy_(mean)
        module.hidden_offset.copy_(hidden_mean)
    assign_about(module, module.visible(), module.hidden(), mean, hidden_mean)
    return module


def _limit(module: "RBM", max_field_std: float | None) -> float:
    if max_field_std is None:
        return math.inf if module.hidden.family == "gaussian" else _MAX_FIELD_STD
    if not isinstance(max_field_std, int | float) or not max_field_std > 0.0:
        raise ValueError(f"max_field_std must be a positive number or None, got {max_field_std!r}")
    return float(max_field_std)


def _variance(unit: Unit) -> Tensor:
    """Variance of every entry of a layer without a field."""
    variance: Tensor = unit.conditional().variance
    return variance


def _components(module: "RBM", centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of the visible units, and components of the rows in units of them."""
    size, num_hidden = module.weight.shape
    if module.visible.family != "gaussian":
        variance = _variance(module.visible())
        return variance, *_principal(centred * variance.rsqrt(), num_hidden)
    values, vectors = _principal(centred, num_hidden)
    kept = min(num_hidden, size - 1)
    total = centred.square().mean(0).sum()
    residual = (total - values[:kept].sum()) / (size - kept)
    residual = residual.clamp(min=max(_MIN_VARIANCE * total.item() / size, 1e-12))
    variance = residual.expand(size)
    module.visible.assign(module.visible().replace(precision=variance.reciprocal()))
    return variance, values / residual, vectors


def _principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a covariance and their vectors in columns; at most as many as the rank.

    :param Tensor centred: rows of mean zero, shape ``(rows, n)``.
    """
    rows, size = centred.shape
    wide = rows < size
    exact = centred.to(_exact_type(centred))
    gram = (exact @ exact.T if wide else exact.T @ exact) / rows
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = values > _RANK_TOLERANCE * values[:1].clamp(min=torch.finfo(values.dtype).tiny)
    values, vectors = values[kept], vectors[:, kept]
    if wide:
        vectors = exact.T @ vectors
        vectors = vectors / vectors.norm(dim=0)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    return values.to(centred), vectors.to(centred)


def _exact_type(tensor: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64
