# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The other half of a digit: an RBM completes images of which half of the pixels were seen.

The missing pixels are drawn from the machine clamped to the seen ones, by block Gibbs or parallel
tempering, and scored bit by bit with Rao-Blackwellised probabilities, against the pixels' means and the
nearest neighbours in the training set on the seen half; none of them knows the class. Where the hidden
layer is small, its states are enumerated: then the conditional law is exact, and the chains are compared
with it.

    PYRO_EBM_DATA=/path/to/data python examples/half_digits.py
    PYRO_EBM_DATA=/path/to/data python examples/half_digits.py --model rbm.safetensors --halves top random
    python examples/half_digits.py --smoke
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from baselines.neighbours import CLIP, log_scores, neighbour_rates
from torch import Generator, Tensor
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.datasets import Dataset
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.units import Bernoulli
from pyro_ebm.infer import ParallelTempering, completions
from pyro_ebm.training import Trainer

HALVES = ("left", "right", "top", "bottom", "random")


# --- what is seen -------------------------------------------------------------------------------


def seen_mask(half: str, image_shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """True for the pixels that are seen, shape ``(V,)``: the named half, or a random one.

    :raises ValueError: for an unknown half.
    """
    mask = torch.zeros(image_shape, dtype=torch.bool)
    height, width = image_shape[-2:]
    if half == "random":
        chosen = torch.randperm(mask.numel(), generator=Generator().manual_seed(seed))
        return mask.flatten().index_fill(0, chosen[: mask.numel() // 2], True)
    regions = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
    }
    if half not in regions:
        raise ValueError(f"half must be one of {HALVES}, got {half!r}")
    mask[(..., *regions[half])] = True
    return mask.flatten()


# --- the machine's answers ------------------------------------------------------------------------


@torch.no_grad()
def by_gibbs(
    machine: RBM, mask: Tensor, images: Tensor, options: argparse.Namespace, num_frames: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Block Gibbs of the clamped machine, whose chains start at the visible layer without its weights.

    :returns: probabilities of the missing bits given the hidden units, averaged over the second half of the
        sweeps, shape ``(chains, N, missing)``; those of the last sweep, of the same shape; and those of
        the first chains' first sweeps, ``(num_frames, N, missing)``.
    """
    clamped = machine.clamp(mask, images)
    sweep = GibbsSweep(clamped, Generator().manual_seed(options.seed))
    v = sweep.initial_visible(torch.Size((options.chains, *clamped.shape())))
    frames, total, kept = [v[0]], torch.zeros_like(v), 0
    rates = v
    for i in range(options.steps):
        theta = sweep.visible_theta(sweep.sample_hidden(v))
        v = clamped.visible.natural_sample(theta, sweep.generator)
        rates = clamped.visible.natural_mean(theta)
        if i >= options.steps // 2:
            total += rates
            kept += 1
        if len(frames) < num_frames:
            frames.append(rates[0])
    return total / kept, rates, torch.stack(frames[: max(num_frames, 1)])


@torch.no_grad()
def by_tempering(
    machine: RBM, mask: Tensor, images: Tensor, options: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """The ends of chains of parallel tempering of the clamped machine, one probability a bit and chain."""
    torch.manual_seed(options.seed)  # the kernel draws from the global generator
    states = completions(
        machine,
        mask,
        images,
        num_samples=options.chains,
        kernel=lambda clamped: ParallelTempering(clamped, num_replicas=options.replicas),
        num_steps=options.steps,
    )
    rates = machine.visible.mean(machine.visible_field(states.hidden))[..., ~mask]
    return rates, rates


@torch.no_grad()
def exact_conditional(machine: RBM, mask: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    r"""The law of the missing bits given the seen ones, by all states of the hidden layer.

    .. math:: p(v_m \mid v_o) = \sum_h p(h \mid v_o) \prod_{i \in m} p(v_i \mid h)

    :returns: marginal probabilities, shape ``(N, missing)``, and the joint log-probability of all missing
        bits of the images, shape ``(N,)``; float64.
    """
    images = images.double()
    clamped = machine.to(dtype=torch.float64).clamp(mask, images)
    hidden = clamped.transpose()
    states = hidden.visible.states(0, hidden.visible.num_states).unsqueeze(1)
    log_weight = hidden.log_prob(states)
    given_hidden = clamped.visible.mean(clamped.visible_field(states.squeeze(1)))
    marginals = torch.softmax(log_weight, 0).T @ given_hidden
    joint = clamped.log_prob(images[:, ~mask]) - torch.logsumexp(log_weight, 0)
    return marginals, joint


def check_chains(rates: Tensor, exact: Tensor) -> dict[str, float]:
    """Means of independent chains against the exact ones, in standard errors and in probability."""
    error = (rates.mean(0) - exact).double()
    std_error = rates.double().std(0) / len(rates) ** 0.5
    z = (error / std_error)[std_error > 0]
    return {
        "rms_z": z.square().mean().sqrt().item(),
        "max_z": z.abs().max().item(),
        "rms_error": error.square().mean().sqrt().item(),
        "max_error": error.abs().max().item(),
    }


# --- scores -----------------------------------------------------------------------------------------


def score(truth: Tensor, rates: Tensor) -> dict[str, Tensor]:
    """Scores of every image, shape ``(N,)``."""
    rates = rates.double()
    return {
        "wrong": ((rates > 0.5) != (truth > 0.5)).double().mean(-1),
        "log_score": log_scores(truth, rates),
        "squared_error": (rates - truth).square().mean(-1),
    }


def summary(values: Tensor) -> dict[str, float]:
    """Mean over images, with its standard error."""
    return {"value": values.mean().item(), "std_error": values.std().item() / len(values) ** 0.5}


# --- one half ---------------------------------------------------------------------------------------


def complete(
    machine: RBM, train: Tensor, images: Tensor, mask: Tensor, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor, Tensor]:
    """All answers and their scores.

    :returns: numbers; probabilities of the missing bits by method; those of single chains for the picture,
        shape ``(chains, N, missing)``; and of the film, ``(frames, N, missing)``.
    """
    truth, result, answers = images[:, ~mask], {}, {}
    started = time.perf_counter()
    per_chain, last, frames = by_gibbs(machine, mask, images, options, options.frames)
    answers["gibbs"], chains = per_chain.mean(0), {"gibbs": per_chain}
    result["seconds"] = {"gibbs": time.perf_counter() - started}
    if "tempering" in options.samplers:
        started = time.perf_counter()
        chains["tempering"], last = by_tempering(machine, mask, images, options)
        answers["tempering"] = chains["tempering"].mean(0)
        result["seconds"]["tempering"] = time.perf_counter() - started
    if machine.weight.shape[-1] <= options.max_exact:
        answers["exact"], joint = exact_conditional(machine, mask, images)
        result["joint_log_prob"] = summary(joint)
        result["check"] = {n: check_chains(x, answers["exact"]) for n, x in chains.items()}
    found, result["neighbours"] = neighbour_rates(train, images, mask, options.held_out)
    scores = {name: score(truth, rates) for name, rates in (answers | found).items()}
    result["missing"] = int((~mask).sum())
    result["scores"] = {
        name: {metric: summary(x) for metric, x in row.items()} for name, row in scores.items()
    }
    rival = max(found, key=lambda name: scores[name]["log_score"].mean().item())
    # Of the same images: the error of the difference is much smaller than those of both.
    result["gain"] = {"over": rival} | {
        metric: summary(scores["gibbs"][metric] - scores[rival][metric]) for metric in scores[rival]
    }
    return result, answers | found, last, frames


def describe(half: str, result: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    lines = [
        f"\n{half} half seen, {result['missing']} bits missing; neighbours: {result['neighbours']}",
        f"{'':20}{'bits wrong (%)':>18}{'nats per bit':>22}{'squared error':>20}",
    ]
    for name, row in result["scores"].items():
        wrong, log, square = (row[m] for m in ("wrong", "log_score", "squared_error"))
        lines.append(
            f"{name:20}{100 * wrong['value']:10.2f} +- {100 * wrong['std_error']:.2f}"
            f"{log['value']:13.4f} +- {log['std_error']:.4f}{square['value']:20.4f}"
        )
    gain = result["gain"]["log_score"]
    lines.append(
        f"gibbs over {result['gain']['over']}: {gain['value']:+.4f} +- {gain['std_error']:.4f}"
    )
    for name, check in result.get("check", {}).items():
        lines.append(
            f"{name} against enumeration: RMS {check['rms_z']:.2f}, largest {check['max_z']:.1f} "
            f"standard errors; largest difference {check['max_error']:.4f}"
        )
    if "joint_log_prob" in result:
        joint = result["joint_log_prob"]["value"] / result["missing"]
        lines.append(f"exact log p(missing | seen): {joint:.4f} nats per bit, all bits together")
    return "\n".join(lines)


def merge(images: Tensor, mask: Tensor, free: Tensor) -> Tensor:
    """Images whose missing pixels are replaced; ``free`` may have leading axes."""
    merged = images.expand(*free.shape[:-1], -1).clone()
    merged[..., ~mask] = free.to(images)
    return merged


def draw(
    half: str,
    images: Tensor,
    labels: Tensor,
    mask: Tensor,
    mean: Tensor,
    last: Tensor,
    frames: Tensor,
    data: Dataset,
    name: str,
    folder: Path,
) -> None:
    """One image of every class, completed; and how a chain gets there."""
    known = labels[: len(images)].tolist()
    shown = [known.index(label) for label in sorted(set(known))][:10]
    figure = plotting.completions(
        images[shown],
        mask,
        merge(images, mask, mean)[shown],
        merge(images, mask, last[:4])[:, shown],
        data.image_shape,
        name=name,
        title=f"{half.capitalize()} half seen" if half != "random" else "Half of the pixels seen",
    )
    plotting.save(figure, folder / f"{half}.png")
    film = merge(images, mask, frames)[:, shown].transpose(0, 1)
    animation = plotting.chain_animation(
        film, data.image_shape, num_columns=5, title=f"{half} half seen"
    )
    plotting.save_animation(animation, folder / f"{half}.gif", frames_per_second=6)


# --- the program ------------------------------------------------------------------------------------


def load_or_train(data: Dataset, options: argparse.Namespace) -> nn.RBM:
    """The model of ``--model``, or a new one.

    :raises ValueError: for a model of other data.
    """
    if options.model is not None:
        module = pyro_ebm.load(options.model)
        if not isinstance(module, nn.RBM) or module.weight.shape[0] != data.num_pixels:
            raise ValueError(
                f"--model must be an RBM of {data.num_pixels} visible units, got {module}"
            )
        return module
    module = nn.RBM(data.num_pixels, options.hidden, centered=True, seed=options.seed)
    module.init_from_data(data.train())
    started = time.perf_counter()
    trainer = Trainer(module, training_config(options, seed=options.seed))
    trainer.fit(data.train())
    print(f"trained {options.num_epochs} epochs in {time.perf_counter() - started:.0f} s")
    best: nn.RBM = trainer.averaged
    return best


def main(options: argparse.Namespace) -> dict[str, Any]:
    """All halves; writes and returns the report."""
    data = datasets.load(options.data, validation=options.validation)
    module = load_or_train(data, options)
    with torch.no_grad():
        machine = module().to(dtype=torch.float32)
    if not isinstance(machine.visible, Bernoulli):
        raise ValueError(f"bits are scored: visible units must be Bernoulli, got {machine.visible}")
    train = data.binarized("train", seed=0)[: options.train_rows]
    images = data.binarized(options.split, seed=0)[: options.images]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    report: dict[str, Any] = {"settings": settings | {"clip": CLIP}, "halves": {}}
    options.output.mkdir(parents=True, exist_ok=True)
    for half in options.halves:
        mask = seen_mask(half, data.image_shape, options.seed)
        result, answers, last, frames = complete(machine, train, images, mask, options)
        report["halves"][half] = result
        print(describe(half, result))
        mean = answers.get("exact", answers["gibbs"])
        labels = data.labels(options.split)
        name = f"{options.split} image"
        draw(half, images, labels, mask, mean, last, frames, data, name, options.output)
    (options.output / "half_digits.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwrote {options.output}")
    return report


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--model", help="a trained RBM instead of a new one")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--halves", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--validation", type=int, default=0, help="training images held out")
    parser.add_argument(
        "--split",
        default="test",
        choices=["test", "validation"],
        help="completed; choose options by validation images",
    )
    parser.add_argument("--images", type=int, default=500, help="number of images completed")
    parser.add_argument("--train-rows", type=int, default=60_000, help="for the baselines")
    parser.add_argument("--held-out", type=int, default=1000, help="of them, to choose neighbours")
    parser.add_argument(
        "--samplers", nargs="*", choices=["tempering"], default=[], help="beside block Gibbs"
    )
    parser.add_argument("--chains", type=int, default=20, help="of every image")
    parser.add_argument("--steps", type=int, default=100, help="sweeps of a chain")
    parser.add_argument("--replicas", type=int, default=8, help="of tempering")
    parser.add_argument("--frames", type=int, default=40, help="of the film")
    parser.add_argument(
        "--max-exact", type=int, default=12, help="enumerate that many hidden units"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/half_digits"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    add_training_options(
        parser,
        num_epochs=5,
        learning_rate=0.1,
        learning_rate_schedule="linear",
        persistent=True,
        binarize=True,
    )
    options = parser.parse_args(words)
    if options.smoke:
        options.data, options.hidden, options.num_epochs, options.batch_size = "digits", 10, 15, 20
        options.learning_rate = 0.2
        options.images, options.held_out, options.frames, options.chains = 60, 200, 8, 50
        options.samplers, options.steps, options.replicas = ["tempering"], 60, 4
        options.halves, options.progress = ["left"], False
    return options


if __name__ == "__main__":
    main(parse())
