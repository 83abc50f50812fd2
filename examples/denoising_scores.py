# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How good estimates of clean images are, for ``denoising.py``."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.predictive import ReliabilityTable, reliability_table


def scores(estimate: Tensor, clean: Tensor) -> dict[str, float]:
    """Share of wrong pixels after rounding, with its standard error over images, and the peak signal-to-noise
    ratio of the estimate as it is, in decibels.

    :param Tensor estimate: grey levels, shape ``(images, pixels)``.
    :param Tensor clean: bits of the same shape.
    """
    wrong = ((estimate > 0.5) != (clean > 0.5)).double().mean(1)
    squared = (estimate.clamp(0.0, 1.0) - clean).double().square().mean().item()
    return {
        "error": wrong.mean().item(),
        "error_std_error": wrong.std().item() / math.sqrt(len(wrong)),
        "psnr": -10.0 * math.log10(max(squared, 1e-12)),
    }


def calibration(probability: Tensor, clean: Tensor) -> ReliabilityTable:
    """How often pixels are what they most probably are, by that probability."""
    p = probability.flatten().double()
    return reliability_table(torch.maximum(p, 1.0 - p), (p > 0.5) == (clean.flatten() > 0.5))


def image_report(
    estimates: Mapping[str, Tensor], posteriors: Mapping[str, Any], clean: Tensor, given: Tensor
) -> dict[str, Any]:
    """Scores of all methods; those of hidden pixels apart, where there are some."""
    every = dict(estimates)
    for name, posterior in posteriors.items():
        every |= {name: posterior.mean, f"{name}, mode": posterior.mode}
    hidden = ~given[0]
    report: dict[str, Any] = {}
    for name, estimate in every.items():
        report[name] = {"given": scores(estimate[:, ~hidden], clean[:, ~hidden])}
        if bool(hidden.any()):
            report[name]["hidden"] = scores(estimate[:, hidden], clean[:, hidden])
        if name in posteriors:
            report[name]["calibration"] = calibration(estimate, clean).to_dict()
    return report


def noise_report(
    parameters: Mapping[str, Tensor], truth: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Posterior mean, standard deviation and central 95 % interval of every parameter of the noise; where
    each image has its own, averages over the images, and the share of intervals that hold the truth.

    :param parameters: draws, shapes ``(chains, draws, 1 or images)``.
    """
    report = {}
    for name, draws in parameters.items():
        flat = draws.flatten(0, 1).double()
        ends = torch.tensor([0.025, 0.975], dtype=flat.dtype)
        low, high = flat.quantile(ends, 0)
        inside = (low <= truth[name]) & (truth[name] <= high)
        report[name] = {
            "truth": truth[name],
            "mean": flat.mean().item(),
            "std": flat.std(0).mean().item(),
            "low": low.mean().item(),
            "high": high.mean().item(),
            "covered": inside.double().mean().item(),
        }
    return report


def text_of(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = []
    for method, values in report["noise"].items():
        for name, x in values.items():
            lines.append(
                f"{method}: {name} {x['mean']:.3f} ({x['low']:.3f} to {x['high']:.3f}), truth {x['truth']:g}"
            )
    seen = ", ".join(f"{name} {count}" for name, count in report["fitted_on"].items())
    lines.append(f"training images: {seen}")
    lines.append(f"{'':30} wrong pixels [%]       PSNR [dB]   calibration error")
    for method, by_part in report["images"].items():
        for part in ("given", "hidden"):
            if part not in by_part:
                continue
            x = by_part[part]
            label = method if part == "given" else f"{method} (hidden)"
            line = f"{label:30} {100 * x['error']:6.2f} +- {100 * x['error_std_error']:4.2f}"
            line += f"         {x['psnr']:6.2f}"
            if part == "given" and "calibration" in by_part:
                line += f"      {by_part['calibration']['error']['value']:.4f}"
            lines.append(line)
    return "\n".join(lines)
