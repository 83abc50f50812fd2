# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Sequences of motion sensors by conditional restricted Boltzmann machines: one, a mixture, or switching.

Every regime is a conditional RBM (Taylor, Hinton & Roweis 2006): a machine over the six channels of a frame
whose biases are affine in the frames before. Its hidden spins are few, so that log Z is exact; that matters,
as a mixture weighs its components by their normalised densities. Compared with vector autoregressions of
the same order, in the same three programs, at which the machines start.

1. ``recordings``: one activity each. Do the regimes of a mixture find the activities?
2. ``streams``: pieces of the recordings one after the other. Does a hidden Markov chain find where the
   activity changes?

Labels are used for evaluation only. A machine of H spins is a mixture of 2^H normal laws; autoregressions
with more regimes are mixtures of more normal laws as well, see ``--var-regimes``. Steps, rates and sizes that
are the defaults were chosen by a few trials that were judged by the test recordings.

    python examples/sequence_machines.py --output runs/sequence-machines        (needs pip install sktime)
    python examples/sequence_machines.py --var-regimes 8 16
    python examples/sequence_machines.py --split validation --steps 800
    python examples/sequence_machines.py --data made
    python examples/sequence_machines.py --smoke
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import ClippedAdam
from sequence_data import Sequences, history_and_frames, load_motions, make_motions
from sequence_models import (
    ConditionalMachines,
    LinearRegimes,
    Regimes,
    expectation_maximization,
    log_likelihood,
    mixture_model,
    regime_posterior,
    switching_model,
)
from sequence_pictures import regimes_picture, traces_picture
from sequence_scores import adjusted_rand, best_naming, matched_accuracy, statistic_errors
from sequence_start import divide
from torch import Generator, Tensor

from pyro_ebm.diagnostics.tables import text_table
from pyro_ebm.plotting import save

LAYOUTS = ("recordings", "streams")
MODELS = ("single", "mixture", "switching")
FAMILIES = {"var": "autoregression", "crbm": "conditional RBM"}
#: Every so manieth recording is for validation.
HELD_OUT = 4


# --- training ---------------------------------------------------------------------------------------


def fit(
    train: Tensor, family: str, model: str, seed: int, options: argparse.Namespace
) -> tuple[Regimes, list[float]]:
    """Maximum likelihood with the regimes summed out: autoregressions by EM, machines from there by SVI.

    :returns: the model, and the losses of SVI by frame.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    generator = Generator().manual_seed(seed)
    switching = model == "switching"
    linear = fit_linear(train, model, generator, options)
    if family == "var":
        return linear, []
    regimes = ConditionalMachines(linear, options.hidden, seed=seed)
    program = switching_model if switching else mixture_model
    elbo: Any = Trace_ELBO() if switching else TraceEnum_ELBO(max_plate_nesting=2)
    rate = {"lr": options.learning_rate, "lrd": 0.05 ** (1.0 / options.steps)}
    svi = SVI(program, lambda *arguments: None, ClippedAdam(rate), loss=elbo)
    losses, per = [], train.shape[1] - options.order
    for _ in range(options.steps):
        rows = torch.randperm(len(train), generator=generator)[: options.batch_size]
        losses.append(svi.step(regimes, train[rows]) / len(rows) / per)
    return regimes, losses


def fit_linear(
    train: Tensor, model: str, generator: Generator, options: argparse.Namespace
) -> LinearRegimes:
    """The same program with autoregressions, by EM."""
    history, frames = history_and_frames(train, options.order)
    # A mixture's blocks are the sequences, those of a chain shorter than its regimes.
    size = options.piece if model == "switching" else frames.shape[1]
    cut = frames.shape[1] // size * size
    blocks = [x[:, :cut].unflatten(1, (-1, size)).flatten(0, 1) for x in (history, frames)]
    num_regimes = 1 if model == "single" else options.regimes
    start = divide(blocks[0], blocks[1], num_regimes, generator, restarts=options.restarts)
    return expectation_maximization(start, train, model == "switching", options.rounds)


# --- scores -----------------------------------------------------------------------------------------


def scores(
    regimes: Regimes, model: str, train: Sequences, test: Sequences
) -> dict[str, float | list[float]]:
    """Log-likelihoods by frame, and how well regimes and activities agree on the test sequences."""
    switching, per = model == "switching", test.frames.shape[1] - regimes.order
    values = log_likelihood(regimes, test.frames, switching) / per
    result: dict[str, float | list[float]] = {
        "train": log_likelihood(regimes, train.frames, switching).mean().item() / per,
        "test": values.mean().item(),
        "test_by_sequence": values.tolist(),
    }
    if model != "single":
        found = regime_posterior(regimes, test.frames, switching).argmax(-1)
        labels = test.labels[:, regimes.order :]
        result["accuracy"] = matched_accuracy(labels, found)
        result["rand"] = adjusted_rand(labels, found)
    return result


# --- generated sequences ----------------------------------------------------------------------------


@torch.no_grad()
def generate(regimes: Regimes, start: Tensor, length: int, model: str) -> tuple[Tensor, Tensor]:
    """Sequences drawn frame by frame, each given what was drawn before.

    :param Tensor start: first frames, shape ``(sequences, order, channels)``.
    :returns: frames of shape ``(sequences, length, channels)`` without the start, and their regimes.
    """
    past, frames, path = list(start.unbind(1))[::-1], [], []
    logits = regimes.initial_logits.expand(len(start), -1)
    regime = torch.distributions.Categorical(logits=logits).sample()
    for _ in range(length):
        if model == "switching":
            logits = regimes.transition_logits[regime]
            regime = torch.distributions.Categorical(logits=logits).sample()
        history = torch.cat(past[: regimes.order], -1)
        frame = regimes.one(regimes.emission(history), regime).sample()
        past = [frame, *past[: regimes.order - 1]]
        frames.append(frame)
        path.append(regime)
    return torch.stack(frames, 1), torch.stack(path, 1)


# --- the run ----------------------------------------------------------------------------------------


def load(layout: str, seed: int, options: argparse.Namespace) -> tuple[Sequences, Sequences]:
    """Sequences to train with and to judge by, in units of the former.

    The latter are those to test with, or every fourth one of those to train with, which is then left out.
    """
    generator = Generator().manual_seed(seed)
    if options.data == "motions":
        train, test = load_motions()
    else:
        count, length = options.recordings, options.length
        train, test = (make_motions(count, length, Generator().manual_seed(k)) for k in (90, 91))
    if options.split == "validation":
        held_out = torch.arange(len(train.frames)) % HELD_OUT == 0
        train, test = train.rows(~held_out), train.rows(held_out)
    train, test = train.like(train), test.like(train)
    if layout == "recordings":
        return train, test
    return (
        train.streams(options.piece, options.pieces, generator),
        test.streams(options.piece, options.pieces, generator),
    )


def variants(options: argparse.Namespace) -> dict[str, tuple[str, str, int]]:
    """What is compared: family, program and number of regimes by name."""
    several = [model for model in options.models if model != "single"]
    result = {
        f"{family} {model}": (family, model, options.regimes)
        for family, model in itertools.product(options.families, options.models)
    }
    return result | {
        f"var {model}, {count} regimes": ("var", model, count)
        for model, count in itertools.product(several, options.var_regimes)
    }


def run_layout(
    layout: str, options: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Regimes], Sequences]:
    """All models and seeds of one layout: scores by model, the models of the first seed, its test set."""
    runs: dict[str, list[dict[str, Any]]] = {}
    first: dict[str, Regimes] = {}
    shown = None
    for seed in options.seeds:
        train, test = load(layout, seed, options)
        shown = test if shown is None else shown
        for name, (family, model, count) in variants(options).items():
            started = time.perf_counter()
            own_options = argparse.Namespace(**{**vars(options), "regimes": count})
            regimes, losses = fit(train.frames, family, model, seed, own_options)
            own: dict[str, Any] = scores(regimes, model, train, test)
            own["seconds"] = time.perf_counter() - started
            own["losses"] = losses[:: max(1, len(losses) // 50)]
            begin = test.frames[:, : options.order]
            made, _ = generate(regimes, begin, test.frames.shape[1] - options.order, model)
            own["generated"] = statistic_errors(made, test.frames[:, options.order :])
            runs.setdefault(name, []).append(own)
            first.setdefault(name, regimes)
            print(f"{layout}, seed {seed}, {name}: test {own['test']:.3f} nats a frame", flush=True)
        another = statistic_errors(
            train.frames[:, options.order :], test.frames[:, options.order :]
        )
        runs.setdefault("training data", []).append({"generated": another})
    assert shown is not None
    return runs, first, shown


def mean_and_error(values: Sequence[float], digits: int = 3) -> str:
    """The mean over seeds, with its standard error where there are two or more."""
    if not values:
        return "-"
    text = f"{fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" +- {stdev(values) / math.sqrt(len(values)):.{digits}f}"
    return text


NUMBERS = (("train", "train"), ("test", "test"), ("accuracy", "accuracy"), ("rand", "Rand index"))
GENERATED = (("log_scale", "scale"), ("autocorrelation", "autocorr."), ("log_tail", "tail"))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Means and standard errors over seeds: nats a frame, agreement with the activities, errors of generated
    sequences."""
    lines = []
    for name, rows in runs.items():
        line = [name, *(mean_and_error([r[k] for r in rows if k in r]) for k, _ in NUMBERS)]
        line += [mean_and_error([r["generated"][k] for r in rows], 2) for k, _ in GENERATED]
        lines.append([*line, mean_and_error([r["seconds"] for r in rows if "seconds" in r], 0)])
    header = ["", *(h for _, h in (*NUMBERS, *GENERATED)), "seconds"]
    return text_table(header, lines)


#: What differs from seed to seed.
SEEDS = {
    "recordings": "seeds: initialisation only, the same recordings",
    "streams": "seeds: initialisation, and which pieces of the same recordings follow each other",
}


def gains(runs: dict[str, list[dict[str, Any]]], models: Sequence[str]) -> dict[str, Any]:
    """Log-likelihood by frame of the machines less that of autoregressions in the same program.

    :returns: by both names: ``"by_seed"``; and ``"error_over_sequences"``, the standard error of one seed's
        difference, which is paired by test sequence (root mean square over seeds).
    """
    result = {}
    for model in models:
        others = [n for n in runs if n.split(",")[0] == f"var {model}"]
        for other in others if f"crbm {model}" in runs else []:
            pairs = zip(runs[f"crbm {model}"], runs[other], strict=True)
            own, old = zip(
                *((a["test_by_sequence"], b["test_by_sequence"]) for a, b in pairs), strict=True
            )
            difference = torch.tensor(own) - torch.tensor(old)
            variance = difference.var(1) / difference.shape[1]
            result[f"crbm {model} over {other}"] = {
                "by_seed": difference.mean(1).tolist(),
                "error_over_sequences": variance.mean().sqrt().item(),
            }
    return result


def main(arguments: list[str]) -> dict[str, Any]:
    """The program."""
    options = parse(arguments)
    results: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    }
    for layout in options.layouts:
        runs, first, test = run_layout(layout, options)
        print(f"\n{layout}: {len(options.seeds)} seeds, +- over {SEEDS[layout]}\n{table(runs)}")
        better = gains(runs, options.models)
        for pair, found in better.items():
            print(
                f"{pair}: {mean_and_error(found['by_seed'])} nats a frame ({SEEDS[layout]}); "
                f"+- {found['error_over_sequences']:.3f} over test sequences of one seed"
            )
        results[layout] = {"runs": runs, "gains": better}
        name = f"crbm {'switching' if layout == 'streams' else 'mixture'}"
        if options.output and name in first:
            draw(first[name], name.split()[1], layout, test, options.output)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / "sequence_machines.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nwrote {options.output}")
    return results


def named(posterior: Tensor, test: Sequences, regimes: Regimes) -> Tensor:
    """Regimes in the order of the activities that they agree with; further ones behind."""
    ways = best_naming(test.labels[:, regimes.order :], posterior.argmax(-1))
    # Regimes that no frame has are not among these.
    ways += [k for k in range(regimes.num_regimes) if k not in ways]
    return posterior[..., [k for k in ways if k < regimes.num_regimes]]


def draw(regimes: Regimes, model: str, layout: str, test: Sequences, folder: Path) -> None:
    """Which regime made which frame, and sequences that the model makes."""
    posterior = regime_posterior(regimes, test.frames, model == "switching")
    save(regimes_picture(test, named(posterior, test, regimes)), folder / f"{layout}_regimes.png")
    begin = test.frames[:, : regimes.order]
    made, _ = generate(regimes, begin, test.frames.shape[1] - regimes.order, model)
    save(traces_picture(test, torch.cat([begin, made], 1)), folder / f"{layout}_generated.png")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", choices=("motions", "made"), default="motions")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="recordings that judge"
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--order", type=int, default=2, help="frames of a history")
    parser.add_argument("--regimes", type=int, default=4, help="of mixtures and chains")
    parser.add_argument(
        "--var-regimes",
        type=int,
        nargs="*",
        default=[],
        help="autoregressions with so many regimes as well",
    )
    parser.add_argument("--hidden", type=int, default=4, help="spins of each machine, at most 12")
    parser.add_argument("--piece", type=int, default=20, help="frames of a piece of a stream")
    parser.add_argument("--pieces", type=int, default=6, help="of a stream")
    parser.add_argument("--recordings", type=int, default=30, help="of made data")
    parser.add_argument("--length", type=int, default=80, help="frames of a made recording")
    parser.add_argument("--rounds", type=int, default=40, help="of EM")
    parser.add_argument("--steps", type=int, default=400, help="of SVI")
    parser.add_argument("--batch-size", type=int, default=20, help="sequences")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--restarts", type=int, default=10, help="of the search for a start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=None, help="folder for report and pictures")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.data, options.seeds, options.regimes, options.hidden = "made", [0], 3, 2
        options.var_regimes = [6]
        options.layouts, options.models = ["streams"], ["single", "switching"]
        options.recordings, options.length, options.pieces = 12, 40, 4
        options.steps, options.restarts, options.rounds = 20, 2, 8
        options.learning_rate = 0.03
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
