# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Completion of the lower half of images given the upper half."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.distributions.units import Bernoulli

__all__ = ["Completion", "CompletionOptions", "complete", "describe_completion", "upper_half"]

#: A marginal frequency of 0 or 1 would make a single surprise infinitely bad.
_CLIP = 1e-3


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """How completions are drawn.

    :param int num_images: images that are completed, the first ones.
    :param int num_chains: chains of each image.
    :param int warmup: sweeps thrown away.
    :param int num_sweeps: sweeps that the means are taken over.
    :param int seed: seed.
    """

    num_images: int = 360
    num_chains: int = 10
    warmup: int = 100
    num_sweeps: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """Completed images and how good they are.

    :param Tensor mask: True where a pixel was given, shape ``(V,)``.
    :param Tensor mean: images with the means of the missing pixels, shape ``(N, V)``.
    :param Tensor samples: completed images, shape ``(chains, N, V)``; missing pixels are the means
        given the hidden units of the last sweep.
    :param result: numbers, JSON types only.
    """

    mask: Tensor
    mean: Tensor
    samples: Tensor
    result: dict[str, Any]


def upper_half(image_shape: tuple[int, ...]) -> Tensor:
    """True for the pixels of the upper half of an image, shape ``(V,)``."""
    mask = torch.zeros(image_shape, dtype=torch.bool)
    mask[..., : image_shape[-2] // 2, :] = True
    return mask.flatten()


@torch.no_grad()
def complete(
    module: nn.RBM, images: Tensor, train: Tensor, mask: Tensor, options: CompletionOptions
) -> Completion:
    """Complete images by block Gibbs over the clamped machine, a batch of machines at once.

    The score is the log-probability of every missing bit by itself under its estimated marginal
    given the seen half, against the same with the training set's pixel means.

    :param module: a model with Bernoulli visible units.
    :param Tensor images: whole images, shape ``(N, V)``.
    :param Tensor train: training rows, for the baseline.
    :param Tensor mask: True where a pixel is given.
    :param CompletionOptions options: how.
    """
    started = time.perf_counter()
    dist = module()
    if not isinstance(dist.visible, Bernoulli):
        raise ValueError("completions are scored for Bernoulli visible units only")
    images = images[: options.num_images].to(dist.weight)
    generator = Generator(device=images.device).manual_seed(options.seed)
    clamped = dist.clamp(mask.to(images.device), images)
    sweep = GibbsSweep(clamped, generator)
    v = sweep.initial_visible(torch.Size((options.num_chains, *clamped.shape())))
    total = torch.zeros(clamped.shape(), dtype=torch.float64, device=images.device)
    last = torch.zeros_like(v)
    for i in range(options.warmup + options.num_sweeps):
        theta = sweep.visible_theta(sweep.sample_hidden(v))
        v = clamped.visible.natural_sample(theta, generator)
        if i >= options.warmup:
            # Means given the hidden units vary less than the bits themselves (Rao-Blackwell).
            last = clamped.visible.natural_mean(theta)
            total += last.double().mean(0)
    mean = total / options.num_sweeps
    result = _score(images[:, ~mask], mean, train[:, ~mask].to(images))
    result |= {"settings": asdict(options) | {"num_images": len(images)}}
    result["seconds"] = round(time.perf_counter() - started, 3)
    return Completion(mask, _merge(images, mask, mean), _merge(images, mask, last), result)


def _merge(images: Tensor, mask: Tensor, free: Tensor) -> Tensor:
    """Images whose missing pixels are replaced; ``free`` may have leading axes."""
    merged = images.expand(*free.shape[:-1], -1).clone()
    merged[..., ~mask] = free.to(images)
    return merged


def _score(truth: Tensor, mean: Tensor, train: Tensor) -> dict[str, Any]:
    scores = {
        "model": _scores(truth, mean),
        "baseline": _scores(truth, train.double().mean(0).expand(mean.shape)),
    }
    result: dict[str, Any] = {"num_pixels": truth.shape[-1]}
    for name, values in scores.items():
        result[name] = {metric: _mean_and_error(x) for metric, x in values.items()}
    gains = {m: scores["model"][m] - scores["baseline"][m] for m in scores["model"]}
    result["gain"] = {metric: _mean_and_error(x) for metric, x in gains.items()}
    return result


def _scores(truth: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Scores of every image, averaged over its missing pixels."""
    p = mean.clamp(_CLIP, 1.0 - _CLIP)
    log_p = torch.where(truth > 0.5, p.log(), (1.0 - p).log())
    return {
        "log_prob_per_pixel": log_p.mean(-1),
        "squared_error": (truth - mean).square().mean(-1),
    }


def _mean_and_error(values: Tensor) -> dict[str, float]:
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"value": values.mean().item(), "std_error": error}


def describe_completion(result: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    lines = [
        f"{result['settings']['num_images']} test images, {result['num_pixels']} missing pixels "
        f"each; {result['seconds']:.1f} s",
        f"{'':24}{'log-probability per pixel':>28}{'squared error':>22}",
    ]
    rows = {"model": "model", "baseline": "training pixel means", "gain": "difference"}
    for key, name in rows.items():
        log_p, error = result[key]["log_prob_per_pixel"], result[key]["squared_error"]
        lines.append(
            f"{name:24}{log_p['value']:17.4f} +- {log_p['std_error']:.4f} "
            f"{error['value']:12.4f} +- {error['std_error']:.4f}"
        )
    return "\n".join(lines)
