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

Labels are used for evaluation only.

    python examples/sequence_machines.py --output runs/sequence-machines        (needs pip install sktime)
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
from sequence_start import divide
from torch import Generator, Tensor

from pyro_ebm.diagnostics.tables import text_table
from pyro_ebm.plotting import save

LAYOUTS = ("recordings", "streams")
MODELS = ("single", "mixture", "switching")
FAMILIES = {"var": "autoregression", "crbm": "conditional RBM"}
#: Lags of the autocorrelations that are compared.
LAGS = (1, 2, 4, 8)


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


def confusion(labels: Tensor, found: Tensor) -> Tensor:
    """How often each activity (lines) meets each regime (columns); square."""
    size = int(max(labels.max(), found.max())) + 1
    index = labels.flatten() * size + found.flatten()
    return torch.bincount(index, minlength=size * size).reshape(size, size)


def best_naming(labels: Tensor, found: Tensor) -> list[int]:
    """The regime of every activity, by which most frames agree."""
    table = confusion(labels, found)
    rows = torch.arange(len(table))
    ways = itertools.permutations(range(len(table)))
    return list(max(ways, key=lambda way: int(table[rows, list(way)].sum())))


def matched_accuracy(labels: Tensor, found: Tensor) -> float:
    """Share of frames whose regime is the activity's, under the best naming of the regimes."""
    table = confusion(labels, found)
    rows = torch.arange(len(table))
    return float(table[rows, best_naming(labels, found)].sum() / table.sum())


def adjusted_rand(labels: Tensor, found: Tensor) -> float:
    """Adjusted Rand index: 1 for equal partitions, 0 on average for unrelated ones."""
    table = confusion(labels, found).double()

    def pairs(x: Tensor) -> Tensor:
        return (x * (x - 1.0) / 2.0).sum()

    both, lines, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = lines * columns / pairs(table.sum().reshape(1))
    most = 0.5 * (lines + columns)
    return 0.0 if most == expected else float((both - expected) / (most - expected))


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


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """What is compared of sets of sequences: shapes ``(channels,)`` or ``(lags, channels)``.

    Medians and quantiles over sequences, as a few sequences of large motion would decide a mean.
    """
    centred = frames - frames.mean(1, keepdim=True)
    scale = centred.square().mean(1).clamp_min(1e-12)
    lagged = torch.stack([(centred[:, lag:] * centred[:, :-lag]).mean(1) / scale for lag in LAGS])
    jumps = (frames[:, 1:] - frames[:, :-1]).abs().flatten(0, 1)
    low, middle = (jumps.quantile(q, 0) for q in (0.5, 0.98))
    return {
        "log_scale": 0.5 * scale.log().quantile(torch.tensor([0.25, 0.5, 0.75]), 0),
        "autocorrelation": lagged.median(1).values,
        # How much larger the largest jumps are than the usual ones.
        "log_tail": (middle / low.clamp_min(1e-12)).log(),
    }


def statistic_errors(frames: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean absolute differences of :func:`statistics`."""
    a, b = statistics(frames), statistics(reference)
    return {name: (a[name] - b[name]).abs().mean().item() for name in a}


# --- the run ----------------------------------------------------------------------------------------


def load(layout: str, seed: int, options: argparse.Namespace) -> tuple[Sequences, Sequences]:
    """Sequences to train with and to test, in units of the former."""
    generator = Generator().manual_seed(seed)
    if options.data == "motions":
        train, test = load_motions()
    else:
        count, length = options.recordings, options.length
        train, test = (make_motions(count, length, Generator().manual_seed(k)) for k in (90, 91))
    train, test = train.like(train), test.like(train)
    if layout == "recordings":
        return train, test
    return (
        train.streams(options.piece, options.pieces, generator),
        test.streams(options.piece, options.pieces, generator),
    )


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
        for family, model in itertools.product(options.families, options.models):
            started, name = time.perf_counter(), f"{family} {model}"
            regimes, losses = fit(train.frames, family, model, seed, options)
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
    """Means over seeds: nats a frame, agreement with the activities, errors of generated sequences."""
    lines = []
    for name, rows in runs.items():
        line = [name, *(mean_and_error([r[k] for r in rows if k in r]) for k, _ in NUMBERS)]
        line += [mean_and_error([r["generated"][k] for r in rows], 2) for k, _ in GENERATED]
        lines.append([*line, mean_and_error([r["seconds"] for r in rows if "seconds" in r], 0)])
    header = ["", *(h for _, h in (*NUMBERS, *GENERATED)), "seconds"]
    return text_table(header, lines)


def gains(runs: dict[str, list[dict[str, Any]]], models: Sequence[str]) -> dict[str, list[float]]:
    """Log-likelihood by frame of the machines less that of the autoregressions, by seed."""
    return {
        model: [
            a["test"] - b["test"]
            for a, b in zip(runs[f"crbm {model}"], runs[f"var {model}"], strict=True)
        ]
        for model in models
        if {f"crbm {model}", f"var {model}"} <= runs.keys()
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """The program."""
    options = parse(arguments)
    results: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    }
    for layout in options.layouts:
        runs, first, test = run_layout(layout, options)
        print(f"\n{layout}: {len(options.seeds)} seeds\n{table(runs)}")
        better = gains(runs, options.models)
        for model, values in better.items():
            print(f"{model}: machines gain {mean_and_error(values)} nats a frame")
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
    return posterior[..., [k for k in ways if k < regimes.num_regimes]]


def draw(regimes: Regimes, model: str, layout: str, test: Sequences, folder: Path) -> None:
    """Which regime made which frame, and sequences that the model makes."""
    posterior = regime_posterior(regimes, test.frames, model == "switching")
    save(regimes_picture(test, named(posterior, test, regimes)), folder / f"{layout}_regimes.png")
    made, _ = generate(regimes, test.frames[:, : regimes.order], test.frames.shape[1], model)
    save(traces_picture(test, made), folder / f"{layout}_generated.png")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", choices=("motions", "made"), default="motions")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--order", type=int, default=2, help="frames of a history")
    parser.add_argument("--regimes", type=int, default=4, help="of mixtures and chains, at most 7")
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
        options.layouts, options.models = ["streams"], ["single", "switching"]
        options.recordings, options.length, options.pieces = 12, 40, 4
        options.steps, options.restarts, options.rounds = 20, 2, 8
        options.learning_rate = 0.03
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
