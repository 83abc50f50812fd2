# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of ``nbm_missing_context.py``: replications of the outcomes, and the guide against samplers."""

import argparse
from typing import Any

import torch
from missing_context import MissingContext, fixed, posterior_by_weights
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_ebm.infer.missing import impute

__all__ = ["check_statistics", "posterior_check", "predictive_check"]


def check_statistics(x: Tensor, observed: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What replicated outcomes are compared by; leading axes of y are replications."""
    z = (y - y.mean(-2, keepdim=True)) / y.std(-2, keepdim=True)
    seen = observed[:, 1]
    return {
        "sd of progression": y[..., 0].std(-1),
        "skewness of progression": z[..., 0].pow(3).mean(-1),
        "skewness of blood sugar": z[..., 1].pow(3).mean(-1),
        "kurtosis of blood sugar": z[..., 1].pow(4).mean(-1),
        "correlation of outcomes": (z[..., 0] * z[..., 1]).mean(-1),
        "progression with bmi": (z[..., seen, 0] * x[seen, 1]).mean(-1),
    }


@torch.no_grad()
def predictive_check(
    module: MissingContext, test: tuple[Tensor, Tensor, Tensor], draws: int
) -> dict[str, dict[str, Any]]:
    """Statistics of the test rows among those of replications of their outcomes given x_observed."""
    x, observed, y = test
    found = impute(module.covariates(), x, observed, num_samples=draws)
    replicated = module.outcomes.condition(found.samples).sample()
    values = check_statistics(x, observed, replicated)
    truth = check_statistics(x, observed, y)
    result = {}
    for name, drawn in values.items():
        above = (drawn >= truth[name]).double().mean().item()
        result[name] = {
            "measured": truth[name].item(),
            "replicated": drawn.tolist(),
            "p_value": min(1.0, 2.0 * min(above, 1.0 - above) + 1.0 / draws),
        }
    return result


# --- is the guide the posterior? ----------------------------------------------------------------------


def posterior_check(
    module: MissingContext, test: tuple[Tensor, Tensor, Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """Missing covariates of a few rows by the guide, by NUTS, and by weighted exact draws."""
    most = (~test[1]).sum(-1).argsort(descending=True)[: options.given]
    x, observed, y = (t[most] for t in test)
    samples, weights = posterior_by_weights(module, x, observed, y, options.reference_draws)
    reference = weights.unsqueeze(-1)
    mean = (reference * samples).sum(0)
    std = (reference * (samples - mean).square()).sum(0).sqrt()
    kernel = NUTS(
        fixed(module, x, observed, y),
        max_tree_depth=6,
        init_strategy=init_to_value(values={"latent": torch.where(observed, 0.0, mean.float())}),
    )
    mcmc = MCMC(kernel, options.nuts_draws, options.nuts_draws // 2, disable_progbar=True)
    mcmc.run()
    latent = mcmc.get_samples()["latent"]
    with torch.no_grad():
        loc, scale = module.proposals(x, observed, y)
    missing = ~observed
    before = samples.mean(0)
    return {
        "rows": (x, observed, y),
        "reference": (samples, weights),
        "nuts": latent,
        "guide": (loc, scale),
        "errors": {
            "NUTS": _errors(latent.mean(0), latent.std(0), mean, std, missing),
            "guide": _errors(loc, scale, mean, std, missing),
            "without y": _errors(before, samples.std(0), mean, std, missing),
        },
        "smallest_ess": (1.0 / weights.square().sum(0)).min().item(),
    }


def _errors(
    mean: Tensor, std: Tensor, exact: Tensor, exact_std: Tensor, missing: Tensor
) -> dict[str, float]:
    """RMS of differences: of means in posterior standard deviations, and of standard deviations, relative."""
    z = ((mean - exact) / exact_std)[missing]
    ratio = (std / exact_std - 1.0)[missing]
    return {
        "mean": z.square().mean().sqrt().item(),
        "std": ratio.square().mean().sqrt().item(),
    }
