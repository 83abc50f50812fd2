# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What ``denoising.py`` is compared with: filters that know neither digits nor the noise."""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

#: Weights of the total variation to choose from.
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0)


def fill(seen: Tensor, given: Tensor, mean: Tensor) -> Tensor:
    """Missing pixels at their mean in the training images, for filters that need all of them."""
    return torch.where(given, seen, mean)


def median(images: Tensor, image_shape: Sequence[int]) -> Tensor:
    """The median of every 3 x 3 neighbourhood."""
    ndimage = importlib.import_module("scipy.ndimage")
    pixels = images.reshape(-1, *image_shape[-2:]).double().numpy()
    filtered = torch.from_numpy(ndimage.median_filter(pixels, size=(1, 3, 3), mode="nearest"))
    return filtered.reshape(images.shape).to(images)


def total_variation(
    images: Tensor, image_shape: Sequence[int], weight: float, num_steps: int = 80
) -> Tensor:
    r"""The image x that minimises :math:`\frac12 |x - y|^2 + \lambda \, TV(x)`, by projections of the dual
    variable, a vector of length at most 1 a pixel (A. Chambolle, *An algorithm for total variation
    minimization and applications*, 2004).

    :param Tensor images: y, shape ``(N, V)``.
    :param float weight: :math:`\lambda`.
    """
    y = images.reshape(-1, *image_shape[-2:])
    dual = y.new_zeros((2, *y.shape))
    for _ in range(num_steps):
        slope = _gradient(_divergence(dual) - y / weight)
        # 1/8 is the largest step that is known to converge.
        dual = (dual + 0.125 * slope) / (1.0 + 0.125 * slope.norm(dim=0))
    return (y - weight * _divergence(dual)).reshape(images.shape)


def _gradient(x: Tensor) -> Tensor:
    """Differences to the pixel below and to the one on the right, zero at the border."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    right[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return torch.stack([down, right])


def _divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of the gradient."""
    result = torch.zeros_like(p[0])
    result[:, :-1] += p[0, :, :-1]
    result[:, 1:] -= p[0, :, :-1]
    result[:, :, :-1] += p[1, :, :, :-1]
    result[:, :, 1:] -= p[1, :, :, :-1]
    return result


def best_weight(noisy: Tensor, clean: Tensor, image_shape: Sequence[int]) -> float:
    """The weight of the smallest squared error on other images with the same noise."""
    errors = {
        weight: (total_variation(noisy, image_shape, weight) - clean).square().mean().item()
        for weight in WEIGHTS
    }
    return min(errors, key=errors.__getitem__)
