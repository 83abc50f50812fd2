# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A hierarchical-deep model: classes of images that are learned from one image each.

A deep Boltzmann machine learns features from images of base classes. Above its top layer stands a
hierarchical Bayesian model, a Pyro program: each class is a Gaussian in feature space, and classes that are
alike share a super-class, which says where their means are and how much each feature varies. How many
super-classes there are, and of which one a class is, is inferred (a Dirichlet process; Gibbs and NUTS in
turns). A new class takes from a super-class what its one image cannot tell. It is compared with nearest
neighbours, a new softmax layer and a hierarchy without super-classes, in random episodes; every class is
new in one of the splits.

    PYRO_EBM_DATA=/path/to/data python examples/hierarchical_deep.py --output runs/hierarchical_deep
    python examples/hierarchical_deep.py --data fashion-mnist --output runs/hierarchical_fashion
    python examples/hierarchical_deep.py --skip-training --validation 5000
    python examples/hierarchical_deep.py --smoke
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import hierarchical_pictures as pictures
import pyro
import torch
from dbm_training import describe
from hierarchical_data import (
    Images,
    Projection,
    Split,
    features,
    load_images,
    logits,
    machine_of,
    make_splits,
)
from hierarchical_model import Statistics, Tree, infer
from hierarchical_new_class import NewClasses
from hierarchical_one_shot import (
    METHODS,
    Episode,
    Space,
    draw_support,
    episode_scores,
    hierarchical,
    summary,
)
from torch import Generator, Tensor
from training_options import add_training_options

from pyro_ebm import datasets, nn
from pyro_ebm.plotting.figures import save

TREE, FLAT, PIXELS = "tree, whitened", "flat, whitened", "tree, pixels"
#: Numbers of every method in every episode, by task ("new" classes among themselves, or among "all") and
#: number of examples.
Scores: TypeAlias = dict[tuple[str, int], dict[str, list[dict[str, float]]]]
#: Of the joint training, and of the RBM that the lowest layer starts from.
RECIPE = {
    "num_epochs": 40,
    "num_chains": 100,
    "learning_rate": 0.02,
    "learning_rate_schedule": "cosine",
    "averaging": 0.999,
    "mean_field_updates": 10,
    "persistent_start": "data",
}
RBM_RECIPE = {
    "num_epochs": 20,
    "num_chains": 100,
    "learning_rate": 0.05,
    "learning_rate_schedule": "cosine",
    "averaging": 0.999,
}
SMOKE = {
    "data": ["digits"],
    "hidden": [60, 40],
    "per_class": 120,
    "test_per_class": 20,
    "splits": 3,
    "first": 1,
    "dim": 12,
    "num_super": 3,
    "draws": 5,
    "warmup": 6,
    "predictive_draws": 1,
    "episodes": 2,
    "num_epochs": 10,
    "averaging": 0.98,
    "learning_rate": 0.05,
    "sweeps": 20,
}
SMOKE_RBM = {"num_epochs": 25, "averaging": 0.98, "learning_rate": 0.1, "batch_size": 30}


@dataclass(frozen=True)
class Fitted:
    """What a split has learned from its base classes.

    :param spaces: images as vectors, by the name of the space.
    :param trees: posteriors, by the name of the method, with their space.
    :param projection: from logits of top features to whitened ones.
    """

    split: Split
    module: nn.DBM
    spaces: dict[str, Space]
    trees: dict[str, tuple[Tree, str]]
    projection: Projection


def fit(split: Split, images: Images, number: int, options: argparse.Namespace) -> Fitted:
    """Train the machine on images of base classes, and find the posterior over their tree."""
    module = machine_of(split, images, options, options.output / f"split_{number}")
    top = Space(features(module, images.train), features(module, images.test))
    own = torch.isin(images.train_labels, torch.tensor(split.base))
    labels = images.train_labels[own]
    spaces = {"pixels": Space(images.train, images.test), "features": top}
    projection = Projection(logits(top.train)[own], labels, options.dim)
    spaces["whitened"] = Space(projection(logits(top.train)), projection(logits(top.test)))
    pixels = Projection(images.train[own], labels, options.dim)
    spaces["whitened pixels"] = Space(pixels(images.train), pixels(images.test))
    trees = {}
    wanted = ((FLAT, "whitened", 1), (TREE, "whitened", options.num_super))
    for name, space, num_super in (*wanted, (PIXELS, "whitened pixels", options.num_super)):
        started = time.process_time()
        data = Statistics.of(spaces[space].train[own], labels, split.base)
        tree = infer(
            data,
            num_super=num_super,
            draws=options.draws,
            warmup=options.warmup,
            seed=options.seed,
        )
        trees[name] = tree, space
        print(f"{name}: {time.process_time() - started:.0f} s of CPU time", flush=True)
    return Fitted(split, module, spaces, trees, projection)


def describe_tree(tree: Tree, names: list[str]) -> dict[str, Any]:
    """Super-classes of the draw whose sharing is nearest to the mean over draws, and hyper-parameters."""
    shared = (tree.groups.unsqueeze(-1) == tree.groups.unsqueeze(-2)).double()
    best = tree.groups[(shared - tree.together).square().sum((1, 2)).argmin()]
    groups = [[names[k] for k in (best == s).nonzero()[:, 0]] for s in best.unique()]
    counts = torch.tensor([float(len(g.unique())) for g in tree.groups])
    result: dict[str, Any] = {"super_classes": groups, "number": counts.mean().item()}
    for name in ("shape", "concentration"):
        if name in tree.draws:
            values = tree.draws[name]
            result[name] = {"mean": values.mean().item(), "std": values.std().item()}
    result["strength"] = tree.draws["strength"].mean(0).tolist()
    return result


# --- episodes -------------------------------------------------------------------------------------


def run_episodes(
    fitted: Fitted, images: Images, number: int, options: argparse.Namespace
) -> Scores:
    """Scores of all methods in random episodes, by task and number of examples."""
    generator = Generator().manual_seed(options.seed + 1000 * number)
    results: Scores = {}
    methods = {name: (function, space) for name, (function, space) in METHODS.items()}
    for name, (tree, space) in fitted.trees.items():
        thin = tree.thinned(options.predictive_draws)
        methods[name] = partial(hierarchical, thin, fitted.split.base), space
    for shots in options.shots:
        for _ in range(options.episodes):
            for task, episode in _episodes(fitted.split, images, shots, generator, options):
                truth = images.test_labels[episode.asked]
                table = results.setdefault((task, shots), {name: [] for name in methods})
                for name, (function, space) in methods.items():
                    score = function(fitted.spaces[space], episode)
                    table[name].append(episode_scores(score, truth, episode))
    return results


def _episodes(
    split: Split, images: Images, shots: int, generator: Generator, options: argparse.Namespace
) -> list[tuple[str, Episode]]:
    """The same examples for both tasks."""
    y, asked = images.train_labels, images.test_labels
    support = draw_support(y, split.new, shots, generator)
    memory = draw_support(y, split.base, options.memory, generator).flatten()
    new_rows = torch.isin(asked, torch.tensor(split.new)).nonzero()[:, 0]
    everything = (*split.new, *split.base)
    return [
        ("new", Episode(support, memory[:0], y, split.new, new_rows)),
        ("all", Episode(support, memory, y, everything, torch.arange(len(asked)))),
    ]


def print_table(results: dict[str, Any]) -> None:
    """Every method's numbers in every task."""
    print("\n+- is over episodes, which share test images and machines")
    for task, methods in results.items():
        print(f"\n{task}: accuracy, of new classes, AUROC (in %); the tree is ahead in accuracy by")
        for name, own in methods.items():
            first = [own[key] for key in ("accuracy", "accuracy_new", "auroc")]
            numbers = ", ".join(
                f"{100 * one['mean']:5.1f} +- {100 * one['std_error']:.1f}" for one in first
            )
            ahead = (100 * first[0][key] for key in ("reference_ahead", "reference_ahead_error"))
            print(f"  {name:31s} {numbers};  {next(ahead):5.1f} +- {next(ahead):.1f}")


# --- pictures -------------------------------------------------------------------------------------


def one_example(
    fitted: Fitted, images: Images, options: argparse.Namespace
) -> tuple[Tensor, Statistics]:
    """One image of each new class: its row, and what the model is told."""
    generator = Generator().manual_seed(options.seed)
    support = draw_support(images.train_labels, fitted.split.new, 1, generator)[:, 0]
    rows = fitted.spaces["whitened"].train[support]
    return support, Statistics.of(rows, images.train_labels[support], fitted.split.new)


def membership(tree: Tree, support: Statistics, draws: int) -> Tensor:
    """Probability that new classes share the super-class of each base class, or none of them; shape
    ``(new, K + 1)``."""
    thin = tree.thinned(draws)
    total = torch.zeros(len(support.mean), thin.groups.shape[1] + 1).to(support.mean)
    for draw in range(len(thin.groups)):
        new = NewClasses(thin, draw, support)
        share = new.log_membership.exp()
        inside = (new.used.unsqueeze(-1) == thin.groups[draw]).to(share)
        total += torch.cat([share[:-1].T @ inside, share[-1:].T], 1)
    return total / len(thin.groups)


def new_images(
    fitted: Fitted, support: Statistics, options: argparse.Namespace, number: int = 8
) -> Tensor:
    """Images that are drawn of new classes, shape ``(number, K, pixels)``."""
    pyro.set_rng_seed(options.seed)
    tree = fitted.trees[TREE][0]
    drawn = [NewClasses(tree, int(d), support).sample(1) for d in _spread(tree, number)]
    top = fitted.projection.inverse(torch.cat(drawn)).sigmoid()
    return pictures.images_of(fitted.module().detach(), top, options.sweeps, options.seed)


def _spread(tree: Tree, number: int) -> Tensor:
    return torch.linspace(0, len(tree.groups) - 1, number).long()


def split_figures(fitted: Fitted, images: Images, options: argparse.Namespace) -> dict[str, Any]:
    """The tree of a split, and images of its new classes."""
    base, new = ([images.names[k] for k in part] for part in (fitted.split.base, fitted.split.new))
    rows, support = one_example(fitted, images, options)
    tree = fitted.trees[TREE][0]
    joined = membership(tree, support, options.predictive_draws)
    drawn = new_images(fitted, support, options)
    return {
        "tree": pictures.classes_together(tree.together, base, joined, new, 1),
        "new_classes": pictures.new_class_images(
            images.train[rows], drawn, new, images.image_shape
        ),
    }


def result_figure(results: dict[str, Any], shots: int) -> Any:
    """Accuracy and area under the curve by task."""
    table = {
        title: {name: own[key] for name, own in results[f"{task}, {shots} shot"].items()}
        for task, key, title in (
            ("new", "accuracy", "accuracy, new classes"),
            ("all", "accuracy", "accuracy, all classes"),
            ("all", "auroc", "AUROC of a new class"),
        )
    }
    return pictures.accuracies(table)


# --- the program ----------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> tuple[Images, list[Split]]:
    """Images, and the splits that are run."""
    images = load_images(
        options.data, options.per_class, options.test_per_class, options.validation
    )
    return images, make_splits(images.sources, options.splits, options.seed)[: options.first]


def tabulate(found: Scores, owners: dict[tuple[str, int], list[int]]) -> dict[str, Any]:
    """Means and errors of all methods by task.

    :param found: scores episode by episode.
    :param owners: the split of every episode.
    """
    return {
        f"{task}, {shots} shot": {
            name: summary(values, owners[task, shots], methods[TREE])
            for name, values in methods.items()
        }
        for (task, shots), methods in found.items()
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All splits; a report after each."""
    images, splits = prepare(options)
    report: dict[str, Any] = {**describe(options), "settings": _settings(options), "splits": []}
    found: Scores = {}
    owners: dict[tuple[str, int], list[int]] = {}
    for number, split in enumerate(splits):
        new = ", ".join(images.names[k] for k in split.new)
        print(f"\nsplit {number}: new classes {new}", flush=True)
        fitted = fit(split, images, number, options)
        names = [images.names[k] for k in split.base]
        trees = {name: describe_tree(tree, names) for name, (tree, _) in fitted.trees.items()}
        print(f"super-classes: {trees[TREE]['super_classes']}")
        report["splits"].append({"new": new, "trees": trees})
        for task, table in run_episodes(fitted, images, number, options).items():
            for name, values in table.items():
                found.setdefault(task, {}).setdefault(name, []).extend(values)
            owners.setdefault(task, []).extend([number] * options.episodes)
        for name, figure in split_figures(fitted, images, options).items():
            save(figure, options.output / f"split_{number}" / f"{name}.png")
        report["results"] = tabulate(found, owners)
        (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report["results"])
    for shots in options.shots:
        figure = result_figure(report["results"], shots)
        save(figure, options.output / f"accuracy_{shots}_shot.png")
    return report


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }


def make_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ["mnist", "fashion-mnist"]
    parser.add_argument("--data", nargs="+", default=names, choices=datasets.available())
    parser.add_argument("--splits", type=int, default=3, help="every class is new in one of them")
    parser.add_argument(
        "--first", type=int, default=None, help="splits that are run; all if not given"
    )
    parser.add_argument("--per-class", type=int, default=2000, help="training images of a class")
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument(
        "--validation", type=int, default=0, help="training images to evaluate on, not the test set"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/hierarchical_deep"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    group = parser.add_argument_group("the deep machine")
    group.add_argument("--hidden", type=int, nargs="+", default=[500, 500], metavar="H")
    group.add_argument("--rbm-options", type=json.loads, default={}, help="of TrainerConfig, JSON")
    group.add_argument("--upper-scale", type=float, default=0.05, help="of the upper weights")
    group.add_argument("--skip-training", action="store_true", help="read machines of --output")
    parser.set_defaults(centered=True, weight_scale=0.01, start="rbm", rbm=None, resume=False)
    group = parser.add_argument_group("the hierarchy")
    group.add_argument("--dim", type=int, default=30, help="whitened components of the features")
    group.add_argument("--num-super", type=int, default=10, help="super-classes at most")
    group.add_argument("--draws", type=int, default=100)
    group.add_argument("--warmup", type=int, default=100)
    group = parser.add_argument_group("episodes")
    group.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    group.add_argument(
        "--episodes", type=int, default=20, help="of every split and number of shots"
    )
    group.add_argument(
        "--memory", type=int, default=50, help="images of a base class: nearest image, softmax"
    )
    group.add_argument("--predictive-draws", type=int, default=3, help="draws of the tree")
    group.add_argument("--sweeps", type=int, default=50, help="Gibbs sweeps of images")
    add_training_options(parser, persistent=True, binarize=True, progress=False, **RECIPE)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the program."""
    options = make_parser().parse_args(arguments)
    options.rbm_options = {**RBM_RECIPE, "progress": options.progress, **options.rbm_options}
    if options.smoke:
        vars(options).update(SMOKE)
        options.rbm_options |= SMOKE_RBM
    if len(options.hidden) != 2:
        raise SystemExit("--hidden must be the sizes of two layers")
    if options.checkpoint or options.best_checkpoint:
        raise SystemExit(
            "every split has a machine of its own: there is no --checkpoint of all of them"
        )
    return options


def main(arguments: list[str]) -> dict[str, Any]:
    """The program."""
    return run(parse(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
