# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Regression where a part of the covariates is missing: a neural Boltzmann machine with a latent context.

442 diabetes patients, seven covariates and two outcomes (progression of the disease after a year, blood
sugar). A part of the covariates is deleted at random. Covariates have an RBM as their law, outcomes a
neural Boltzmann machine given them; missing covariates are latent variables. Both machines and an
amortised guide are trained by SVI with exact log Z, and compared with

- complete rows only (and column means for what is missing in the test rows),
- column means in all gaps,
- conditional means in all gaps, by an RBM that was trained on the covariates alone,
- nothing deleted, neither in training nor in testing.

Then checks: is the guide the posterior (NUTS, and weighted exact draws)? Do replicated outcomes look like
those that were measured?

    python examples/nbm_missing_context.py --output runs/nbm-missing-context
    python examples/nbm_missing_context.py --smoke
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyro
import torch
from missing_context import MissingContext, log_density, mixture
from missing_context_checks import posterior_check, predictive_check
from missing_context_pictures import (
    COVARIATES,
    OUTCOMES,
    check_picture,
    posterior_picture,
    predictive_picture,
)
from nbm_missing import delete
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Generator, Tensor

from pyro_ebm.diagnostics.tables import text_table
from pyro_ebm.infer import ContrastiveDivergence
from pyro_ebm.infer.missing import impute, observed_log_likelihood
from pyro_ebm.plotting.figures import save
from pyro_ebm.predictive import coverage, pit_report

METHODS = {
    "joint": "missing covariates latent",
    "complete": "complete rows only",
    "means": "column means in the gaps",
    "conditional": "conditional means in the gaps",
    "oracle": "nothing deleted",
}

#: What differs from seed to seed.
SPLITS = "splits (and deletions) of the same 442 rows, which overlap"


def load() -> tuple[Tensor, Tensor]:
    """Covariates, shape ``(442, 7)``, and outcomes, ``(442, 2)``."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    table = dict(zip(data.feature_names, torch.tensor(data.data).T.float(), strict=True))
    x = torch.stack([table[name] for name in COVARIATES], -1)
    return x, torch.stack([torch.tensor(data.target).float(), table["s6"]], -1)


def split(
    seed: int, options: argparse.Namespace
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Training and test rows (x, observed, y), standardised by what is known of the training rows."""
    generator = Generator().manual_seed(seed)
    x, y = load()
    order = torch.randperm(len(x), generator=generator)
    observed = delete(tuple(x.shape), options.missing, generator)
    parts = [tuple(t[rows] for t in (x, observed, y)) for rows in order.split(options.rows)[:2]]
    known = torch.where(parts[0][1], parts[0][0], torch.nan)
    mean = known.nanmean(0)
    std = (known - mean).square().nanmean(0).sqrt()
    low, scale = parts[0][2].mean(0), parts[0][2].std(0)
    train, test = (((p[0] - mean) / std, p[1], (p[2] - low) / scale) for p in parts)
    return train, test


# --- training ---------------------------------------------------------------------------------------


def fit_covariates(
    module: MissingContext, x: Tensor, observed: Tensor, options: argparse.Namespace
) -> None:
    """Maximum likelihood of what is observed of x, with the missing entries integrated out exactly."""
    module.covariates.init_from_data(torch.where(observed, x, 0.0))
    optimizer = torch.optim.Adam(module.covariates.parameters(), options.start_rate)
    for _ in range(options.start_steps):
        optimizer.zero_grad()
        value = observed_log_likelihood(module.covariates(), x, observed).value
        (-value.mean()).backward()
        optimizer.step()


def fit(
    module: MissingContext, x: Tensor, observed: Tensor, y: Tensor, options: argparse.Namespace
) -> list[float]:
    """Both machines and the guide by SVI; the loss by row of some steps."""
    pyro.clear_param_store()
    rate = {"lr": options.learning_rate, "lrd": 0.05 ** (1.0 / options.steps)}
    # The machines bring their exact log Z, so that this is the plain ELBO; without (more spins than can be
    # enumerated) the same line would supply its gradient by chains.
    loss = ContrastiveDivergence(
        elbo=Trace_ELBO(
            num_particles=options.particles, vectorize_particles=True, max_plate_nesting=1
        )
    )
    svi = SVI(module.model, module.guide, ClippedAdam(rate), loss=loss)
    losses = []
    for step in range(options.steps):
        rows = torch.randperm(len(x))[: options.batch_size]
        value = svi.step(x[rows], observed[rows], y[rows])
        if step % max(1, options.steps // 50) == 0:
            losses.append(value / len(rows))
    return losses


def train(
    how: str, rows: tuple[Tensor, Tensor, Tensor], seed: int, options: argparse.Namespace
) -> MissingContext:
    """A model by one of the methods."""
    pyro.set_rng_seed(seed)
    x, observed, y = rows
    if how == "complete":
        x, observed, y = (t[rows[1].all(-1)] for t in rows)
    elif how == "oracle":
        observed = torch.ones_like(observed)
    module = MissingContext(
        x.shape[1],
        y.shape[1],
        options.hidden_covariates,
        options.hidden,
        sizes=options.sizes,
        seed=seed,
    )
    fit_covariates(module, x, observed, options)
    if how == "conditional":
        # Gaps of test rows are filled in the same way, by the machine as it is now.
        module.imputer = copy.deepcopy(module.covariates().detach())
    complete = filled(how, module, x, observed)
    module.outcomes.init_from_data(y, complete, num_steps=options.start_steps, seed=seed)
    if how != "joint":
        x, observed = complete, torch.ones_like(observed)
    fit(module, x, observed, y, options)
    return module


@torch.no_grad()
def filled(how: str, module: MissingContext, x: Tensor, observed: Tensor) -> Tensor:
    """Covariates without gaps: column means are 0; others are means given the rest of the row.

    The latter by ``module.imputer``, or by the machine of x where there is none (a joint model's).
    """
    if how in ("complete", "means", "oracle"):
        return torch.where(observed, x, 0.0)
    machine = module.covariates() if module.imputer is None else module.imputer
    return impute(machine, x, observed).mean


# --- scores -----------------------------------------------------------------------------------------


def scores(
    how: str,
    module: MissingContext,
    test: tuple[Tensor, Tensor, Tensor],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Held-out log-likelihood, errors and calibration, with what is missing handled as in training."""
    x, observed, y = test
    if how == "oracle":
        observed = torch.ones_like(observed)
    elif how != "joint":
        x = filled(how, module, x, observed)
        observed = torch.ones_like(observed)
    # One draw where nothing is missing: all would be equal.
    draws = options.draws if how == "joint" else 1
    components = options.predictive_draws if how == "joint" else 1
    generator = Generator().manual_seed(0)
    value, error = log_density(module, x, observed, y, draws, generator)
    predicted = mixture(module, x, observed, components, generator)
    inside = coverage(predicted, y, (0.5, 0.9))
    gaps = (~test[1]).sum(-1) >= 2
    result = {
        "log_likelihood": value.mean().item(),
        "log_likelihood_gaps": value[gaps].mean().item(),
        "rmse": (predicted.mean - y)[:, 0].square().mean().sqrt().item(),
        "crps": predicted.crps(y).mean().item(),
        "coverage_50": inside.coverage[0].value,
        "coverage_90": inside.coverage[1].value,
        "pit": [
            pit_report(predicted.cdf(y)[:, k]).to_dict() | {"outcome": name}
            for k, name in enumerate(OUTCOMES)
        ],
    }
    if how == "joint":
        result["monte_carlo_error"] = (error.square().sum().sqrt() / len(y)).item()
    return result


# --- the run ------------------------------------------------------------------------------------------

NUMBERS = (
    ("log_likelihood", "log p(y|x_obs)", 3),
    ("log_likelihood_gaps", "2+ missing", 3),
    ("rmse", "RMSE", 3),
    ("crps", "CRPS", 3),
    ("coverage_50", "in 50 %", 3),
    ("coverage_90", "in 90 %", 3),
    ("seconds", "seconds", 0),
)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds with standard errors over them: splits of the same rows, which overlap, so that
    these errors are too small for rows that are new."""
    lines = []
    for name, rows in runs.items():
        line = [METHODS[name]]
        for key, _, digits in NUMBERS:
            values = [row[key] for row in rows]
            cell = f"{fmean(values):.{digits}f}"
            if len(values) > 1:
                cell += f" +- {stdev(values) / math.sqrt(len(values)):.{digits}f}"
            line.append(cell)
        lines.append(line)
    return text_table(["", *(header for _, header, _ in NUMBERS)], lines)


def gains(runs: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Log-likelihood of the joint model less that of the others, by seed (the same rows and gaps)."""
    if "joint" not in runs:
        return {}
    return {
        name: [
            a["log_likelihood"] - b["log_likelihood"]
            for a, b in zip(runs["joint"], rows, strict=True)
        ]
        for name, rows in runs.items()
        if name != "joint"
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """The program."""
    options = parse(arguments)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    shown: tuple[MissingContext, tuple[Tensor, Tensor, Tensor]] | None = None
    for seed in options.seeds:
        training, test = split(seed, options)
        for how in options.methods:
            started = time.perf_counter()
            module = train(how, training, seed, options)
            seconds = time.perf_counter() - started
            runs[how].append({**scores(how, module, test, options), "seconds": seconds})
            if how == "joint" and shown is None:
                shown = module, test
        print(
            f"seed {seed}: {int(training[1].all(-1).sum())} of {options.rows} rows complete",
            flush=True,
        )
    print(f"\n{len(options.seeds)} seeds, +- over {SPLITS}\n{table(runs)}")
    results: dict[str, Any] = {"scores": runs, "gains": gains(runs), "errors": f"over {SPLITS}"}
    for name, values in results["gains"].items():
        error = f" +- {stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
        print(f"joint model gains {fmean(values):+.3f}{error} nats a row over: {METHODS[name]}")
    if shown is not None:
        results |= checks(*shown, options)
    if options.output:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings, **results}, indent=1)
        (options.output / "nbm_missing_context.json").write_text(text + "\n")
        print(f"\nwrote {options.output}")
    return results


def checks(
    module: MissingContext, test: tuple[Tensor, Tensor, Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """Both checks of the joint model, with pictures."""
    pyro.set_rng_seed(options.seeds[0])
    posterior = posterior_check(module, test, options)
    for name, own in posterior["errors"].items():
        print(
            f"missing covariates, {name}: means off by {own['mean']:.3f} posterior standard deviations, "
            f"standard deviations by {100 * own['std']:.1f} %"
        )
    replicated = predictive_check(module, test, options.replications)
    for name, own in replicated.items():
        print(f"{name}: {own['measured']:.3f}, p = {own['p_value']:.3f}")
    if options.output:
        save(posterior_picture(posterior), options.output / "posterior.png")
        save(check_picture(replicated), options.output / "check.png")
        x, observed, y = test
        predicted = mixture(module, x, observed, options.predictive_draws)
        save(predictive_picture(predicted, y, observed), options.output / "predictive.png")
    return {
        "posterior": {k: posterior[k] for k in ("errors", "smallest_ess")},
        "check": {k: {n: v[n] for n in ("measured", "p_value")} for k, v in replicated.items()},
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--missing", type=float, default=0.25, help="share of deleted covariates")
    parser.add_argument(
        "--rows", type=int, default=300, help="for training; the rest is for testing"
    )
    parser.add_argument(
        "--hidden-covariates", type=int, default=8, help="spins of the machine of x"
    )
    parser.add_argument("--hidden", type=int, default=4, help="spins of the machine of y")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="layers of the networks")
    parser.add_argument("--start-steps", type=int, default=300, help="of the machine of x alone")
    parser.add_argument("--start-rate", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=800, help="of SVI")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--draws", type=int, default=500, help="of missing covariates for log p(y)")
    parser.add_argument(
        "--predictive-draws",
        type=int,
        default=100,
        help="of missing covariates for errors and coverage; costs grow with their square",
    )
    parser.add_argument("--given", type=int, default=4, help="rows of the check of the posterior")
    parser.add_argument("--nuts-draws", type=int, default=300)
    parser.add_argument("--reference-draws", type=int, default=20_000)
    parser.add_argument("--replications", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=None, help="folder for report and pictures")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.methods, options.seeds = ["joint", "means"], [0]
        options.hidden_covariates, options.hidden, options.start_steps, options.steps = 3, 2, 40, 40
        options.draws, options.nuts_draws, options.given, options.replications = 50, 20, 2, 100
        options.reference_draws, options.particles = 2000, 1
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
