# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows with missing entries: training with them, and filling them in.

Entries are missing completely at random (MCAR). Nothing here is right where the chance that an entry is
missing depends on its own value (MNAR): that needs a model of what is missing and why.

1. A Gaussian neural Boltzmann machine whose parameters are known makes rows of which a share of the
   entries is deleted. Machines of the same kind are trained on them in four ways: with the likelihood
   of the observed entries, on complete rows only, with column means in the gaps, and (for
   comparison) on the data before the deletion. Their imputations are compared with what was deleted,
   and with the exact conditional law.
2. Halves of images are completed by a class-conditional machine, with pictures.

    python examples/nbm_missing.py
    python examples/nbm_missing.py --parts rows --missing 0.5
    PYRO_EBM_DATA=/path/to/data python examples/nbm_missing.py --parts images --data mnist
    python examples/nbm_missing.py --smoke
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import datasets, nn
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import conditional_nll, exact_log_partition
from pyro_ebm.infer.missing import impute, observed_log_likelihood
from pyro_ebm.plotting.figures import new_figure, save
from pyro_ebm.predictive import coverage, marginal_mixture
from pyro_ebm.training import Trainer, TrainerConfig

LABELS = {
    "truth": "the true machine",
    "masks": "likelihood of observed entries",
    "complete": "complete rows only",
    "means": "column means in the gaps",
    "oracle": "nothing deleted",
}


# --- 1. rows of a known machine -----------------------------------------------------------------


def new_machine(options: argparse.Namespace, seed: int) -> nn.NeuralBoltzmannMachine:
    """A machine with random parameters."""
    return nn.NeuralBoltzmannMachine(
        2, options.columns, options.hidden, hidden_sizes=options.sizes, seed=seed
    )


@torch.no_grad()
def true_machine(options: argparse.Namespace, seed: int) -> nn.NeuralBoltzmannMachine:
    """A machine whose units depend on each other, with several modes."""
    nbm = new_machine(options, 1000 + seed)
    generator = Generator().manual_seed(2000 + seed)
    for name, parameter in nbm.named_parameters():
        if name.startswith("weight") and name.endswith("bias"):
            parameter.normal_(0.0, options.coupling, generator=generator)
        elif name.startswith("log_precision") and name.endswith("bias"):
            parameter.add_(1.0)
        elif name.startswith("hidden_bias") and parameter.dim() == 1:
            parameter.normal_(0.0, 0.5, generator=generator)
    return nbm


def delete(shape: tuple[int, ...], share: float, generator: Generator) -> Tensor:
    """Masks, True where an entry is observed."""
    return torch.rand(shape, generator=generator) >= share


def train(
    how: str, y: Tensor, observed: Tensor, x: Tensor, seed: int, options: argparse.Namespace
) -> nn.NeuralBoltzmannMachine:
    """Maximum likelihood, by Adam; log Z and the sum over what is missing are exact."""
    if how == "complete":
        rows = observed.all(-1)
        y, observed, x = y[rows], observed[rows], x[rows]
    elif how == "means":
        mean = torch.where(observed, y, 0.0).sum(0) / observed.sum(0)
        y, observed = torch.where(observed, y, mean), torch.ones_like(observed)
    elif how == "oracle":
        observed = torch.ones_like(observed)
    torch.manual_seed(seed)
    nbm = new_machine(options, seed)
    optimizer = torch.optim.Adam(nbm.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in range(options.steps):
        rows = torch.randint(len(y), (min(options.batch_size, len(y)),))
        if how == "masks":
            machine = nbm.condition(x[rows])
            loss = -observed_log_likelihood(machine, y[rows], observed[rows]).value.mean()
        else:
            loss = conditional_nll(nbm, y[rows], x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return nbm


@torch.no_grad()
def judge(
    machine: RBM, truth: RBM, y: Tensor, observed: Tensor, generator: Generator, draws: int
) -> dict[str, float]:
    """Imputations of held-out rows against what was deleted and against the true machine's.

    :param RBM machine: batch shape ``(rows,)``.
    :param RBM truth: the same of the true machine.
    """
    missing = ~observed
    found = impute(machine, y, observed, num_samples=draws, generator=generator)
    best = impute(truth, y, observed).mean
    # Given the rest of its row the law of an entry is a mixture, whose intervals are exact.
    marginal = marginal_mixture(machine.clamp_rows(observed, y))[missing]
    inside = coverage(marginal, y[missing], (0.5, 0.9))
    low, high = torch.quantile(found.samples, torch.tensor([0.05, 0.95]), dim=0)
    return {
        "log_likelihood": _log_likelihood(machine, y),
        "rmse": (found.mean - y)[missing].square().mean().sqrt().item(),
        "rmse_to_exact": (found.mean - best)[missing].square().mean().sqrt().item(),
        "crps": marginal.crps(y[missing]).mean().item(),
        "coverage_50": inside.coverage[0].value,
        "coverage_90": inside.coverage[1].value,
        "coverage_90_draws": ((y >= low) & (y <= high))[missing].float().mean().item(),
    }


def _log_likelihood(machine: RBM, y: Tensor) -> float:
    """Of whole rows, also of the entries that were deleted."""
    return machine.normalize(exact_log_partition(machine)).log_prob(y).mean().item()


def check_draws(
    truth: RBM, y: Tensor, observed: Tensor, generator: Generator, options: argparse.Namespace
) -> dict[str, float]:
    """Draws of ``impute``, exact ones and those of chains, against the exact conditional means."""
    exact = marginal_mixture(truth.clamp_rows(observed, y))
    missing, count, result = ~observed, options.check_draws, {}
    for name, extra in (
        ("exact", {}),
        ("gibbs", {"max_states": 0, "num_steps": options.check_steps}),
    ):
        found = impute(truth, y, observed, num_samples=count, generator=generator, **extra)
        error = (found.samples.mean(0) - exact.mean) / (exact.variance / count).sqrt()
        result[name] = error[missing].square().mean().sqrt().item()
    return result


def rows_part(options: argparse.Namespace) -> dict[str, Any]:
    """The first part, for all seeds."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in LABELS}
    checks = []
    for seed in options.seeds:
        truth = true_machine(options, seed)
        generator = Generator().manual_seed(3000 + seed)
        x = torch.randn(options.rows + options.test_rows, 2, generator=generator)
        with torch.no_grad():
            y = truth.condition(x).sample(generator=generator)
        observed = delete(tuple(y.shape), options.missing, generator)
        split = [options.rows, options.test_rows]
        (x, x_test), (y, y_test) = x.split(split), y.split(split)
        observed, observed_test = observed.split(split)
        with torch.no_grad():
            true_test = truth.condition(x_test)
            few = slice(50)
            machine = truth.condition(x_test[few])
            checks.append(check_draws(machine, y_test[few], observed_test[few], generator, options))
        for how in LABELS:
            started = time.perf_counter()
            nbm = truth if how == "truth" else train(how, y, observed, x, seed, options)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                machine = nbm.condition(x_test)
            scores = judge(machine, true_test, y_test, observed_test, generator, options.draws)
            runs[how].append({**scores, "seconds": seconds})
    share = (1.0 - options.missing) ** options.columns
    print(
        f"\n{options.rows} rows of {options.columns} columns, {100 * options.missing:.0f} % missing, "
        f"{100 * share:.1f} % of the rows complete; {len(options.seeds)} seeds"
    )
    print(table(runs))
    for name in ("exact", "gibbs"):
        root = math.sqrt(fmean(check[name] ** 2 for check in checks))
        print(
            f"draws, {name}: RMS error of conditional means {root:.2f} standard errors (1 if right)"
        )
    return {"scores": runs, "draws": checks}


NUMBERS = (
    ("log_likelihood", "log p(y|x)", 3),
    ("rmse", "RMSE", 3),
    ("rmse_to_exact", "to E[y_m|y_o]", 3),
    ("crps", "CRPS", 3),
    ("coverage_50", "in 50 %", 3),
    ("coverage_90", "in 90 %", 3),
    ("coverage_90_draws", "90 %, draws", 3),
    ("seconds", "train s", 1),
)


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Means over the seeds, with the standard error of the mean where there are two or more."""
    lines = [["", *(label for _, label, _ in NUMBERS)]]
    for name, rows in runs.items():
        line = [LABELS[name]]
        for key, _, digits in NUMBERS:
            values = [row[key] for row in rows]
            cell = f"{fmean(values):.{digits}f}"
            if len(values) > 1:
                cell += f" +- {stdev(values) / math.sqrt(len(values)):.{digits}f}"
            line.append(cell)
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# --- 2. halves of images ------------------------------------------------------------------------


def train_images(
    train: Tensor, labels: Tensor, options: argparse.Namespace
) -> nn.NeuralBoltzmannMachine:
    """A class-conditional machine of bits, by persistent contrastive divergence."""
    nbm = nn.NeuralBoltzmannMachine(
        10,
        train.shape[1],
        options.image_hidden,
        "bernoulli",
        hidden_sizes=(),
        seed=options.seeds[0],
    )
    context = torch.nn.functional.one_hot(labels, 10).float()
    nbm.init_from_data(train, context, seed=options.seeds[0])
    config = TrainerConfig(
        num_epochs=options.image_epochs,
        batch_size=options.image_batch_size,
        learning_rate=options.image_learning_rate,
        learning_rate_schedule="cosine",
        optimizer="adam",
        persistent=True,
        num_chains=30,
        num_steps=2,
        averaging=0.99,
        groups={"weight": {"learning_rate": 5.0 * options.image_learning_rate}},
        seed=options.seeds[0],
        progress=False,
    )
    trainer = Trainer(nbm, config)
    trainer.fit(train, context=context)
    best: nn.NeuralBoltzmannMachine = trainer.averaged
    return best


HALVES = ("left", "right", "top", "bottom")


def half_mask(name: str, height: int, width: int) -> Tensor:
    """True in the half of the image that is seen, shape ``(height * width,)``."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    axis, size = (0, height) if name in ("top", "bottom") else (1, width)
    first = name in ("top", "left")
    middle = size // 2
    mask.narrow(axis, 0 if first else middle, middle if first else size - middle).fill_(True)
    return mask.flatten()


@torch.no_grad()
def images_part(options: argparse.Namespace) -> dict[str, Any]:
    """The second part."""
    data = datasets.load(options.data)
    train, test = (data.binarized(part, seed=0) for part in ("train", "test"))
    train_labels, test_labels = (
        torch.tensor(y).long() for y in (data.train_labels, data.test_labels)
    )
    started = time.perf_counter()
    with torch.enable_grad():
        nbm = train_images(train, train_labels, options)
    seconds = time.perf_counter() - started
    count = min(options.test_images, len(test))
    truth, labels = test[:count], test_labels[:count]
    machine = nbm.condition(torch.nn.functional.one_hot(labels, 10).float())
    generator = Generator().manual_seed(options.seeds[0])
    rates = torch.stack([train[train_labels == k].mean(0) for k in range(10)])[labels]
    result: dict[str, Any] = {"seconds": seconds, "images": count}
    print(f"\n{options.data}: {count} test images, bits, {options.image_hidden} hidden units")
    for half in options.halves:
        seen = half_mask(half, *data.image_shape[-2:])
        found = impute(
            machine,
            truth,
            seen.expand_as(truth),
            options.image_draws,
            options.image_steps,
            generator=generator,
        )
        scores = {}
        for name, mean in (("machine", found.mean), ("class mean", rates)):
            p, bits = mean[:, ~seen].double().clamp(1e-3, 1.0 - 1e-3), truth[:, ~seen].double()
            nll = torch.nn.functional.binary_cross_entropy(p, bits)
            wrong = ((p > 0.5) != (bits > 0.5)).double().mean().item()
            scores[name] = {
                "brier": (p - bits).square().mean().item(),
                "nll": nll.item(),
                "wrong": wrong,
            }
        result[half] = scores
        for name, row in scores.items():
            print(
                f"{half} half seen, {name}: of the hidden pixels {100 * row['wrong']:.2f} % wrong, Brier "
                f"score {row['brier']:.4f}, {row['nll']:.4f} nats each"
            )
        shown = [int((labels == k).nonzero()[0]) for k in range(10)]
        path = options.output / f"{options.data}_{half}.png"
        picture(truth[shown], seen, found.samples[:6, shown], found.mean[shown], data, path)
    return result


def picture(
    truth: Tensor, seen: Tensor, samples: Tensor, mean: Tensor, data: Any, path: Path
) -> None:
    """One line an image: the original, what is seen, draws, the mean."""
    shape = data.image_shape[-2:]
    titles = ["original", "seen", *(f"draw {i + 1}" for i in range(len(samples))), "mean"]
    figure = new_figure(0.75 * len(titles), 0.78 * len(truth) + 0.3)
    axes = figure.subplots(len(truth), len(titles))
    unknown = torch.tensor([0.49, 0.65, 0.83])
    for row in range(len(truth)):
        grey = [truth[row], truth[row], *samples[:, row], mean[row]]
        for column, (ax, values) in enumerate(zip(axes[row], grey, strict=True)):
            picture = values.unsqueeze(-1).expand(-1, 3).clone()
            if column == 1:
                picture[~seen] = unknown
            ax.imshow(picture.reshape(*shape, 3).clamp(0.0, 1.0), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_color("0.7")
            if row == 0:
                ax.set_title(titles[column], fontsize=8)
    save(figure, path)


def main(options: argparse.Namespace) -> None:
    """Both parts."""
    results: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k != "output"}
    }
    options.output.mkdir(parents=True, exist_ok=True)
    if "rows" in options.parts:
        results["rows"] = rows_part(options)
    if "images" in options.parts:
        results["images"] = images_part(options)
    (options.output / "missing.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--parts", nargs="+", choices=["rows", "images"], default=["rows", "images"]
    )
    parser.add_argument("--missing", type=float, default=0.3, help="share of the entries")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4, help="hidden spins")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8], help="layers of the networks")
    parser.add_argument("--coupling", type=float, default=1.5, help="scale of the true weights")
    parser.add_argument("--rows", type=int, default=2000, help="for training")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=600, help="of Adam")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--draws", type=int, default=200, help="imputations of a row")
    parser.add_argument("--check-draws", type=int, default=500, help="of each of 50 rows")
    parser.add_argument("--check-steps", type=int, default=1000, help="sweeps of their chains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="digits", choices=["digits", "mnist", "fashion-mnist"])
    parser.add_argument("--halves", nargs="+", choices=HALVES, default=["left", "top"])
    parser.add_argument("--image-hidden", type=int, default=32)
    parser.add_argument("--image-epochs", type=int, default=60)
    parser.add_argument("--image-batch-size", type=int, default=50)
    parser.add_argument("--image-learning-rate", type=float, default=2e-3)
    parser.add_argument("--image-draws", type=int, default=50)
    parser.add_argument("--image-steps", type=int, default=100, help="sweeps of a chain")
    parser.add_argument("--test-images", type=int, default=360)
    parser.add_argument("--output", type=Path, default=Path("runs/nbm_missing"))
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rows, arguments.test_rows, arguments.steps, arguments.seeds = 300, 100, 20, [0]
        arguments.draws, arguments.columns, arguments.halves = 20, 4, ["left"]
        arguments.image_epochs, arguments.test_images, arguments.image_draws = 1, 50, 10
        arguments.image_steps, arguments.check_draws, arguments.check_steps = 10, 50, 20
    main(arguments)
