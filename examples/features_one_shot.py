# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Features of an RBM: error of three classifiers on p(h|v), and new classes from one image each.

Part 1 classifies test images by k nearest neighbours, multinomial logistic regression and a support
vector machine with the RBF kernel, on E[h|v] of grey levels and on the grey levels. Part 2 trains an RBM
without some classes; each of these is then known by one labelled image (or a few), and images of them
are given the class of the nearest one, in feature space or pixel space, in many random episodes.

    PYRO_EBM_DATA=/path/to/data python examples/features_one_shot.py
    python examples/features_one_shot.py --parts features --model runs/rbm_finetuning/rbm_1.safetensors
    python examples/features_one_shot.py --parts one-shot --hold-out 7 8 9
    python examples/features_one_shot.py --smoke
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_rbm import add_rbm_options, features, load_images, make_rbms
from torch import Tensor
from torch.nn.functional import normalize

from pyro_ebm.training.finetuning import stratified_split

Rows = tuple[Tensor, Tensor]


# --- classifiers on features --------------------------------------------------------------------


def nearest_neighbours(train: Rows, test: Rows, arguments: argparse.Namespace) -> Tensor:
    """k nearest neighbours with the weights 1 / distance, by the Euclidean distance."""
    (x, y), (x_test, _) = train, test
    num_classes = int(y.max()) + 1
    squares = x.square().sum(1)
    predicted = []
    for rows in x_test.split(500):
        # The row's own square is missing: it does not change who is nearest.
        near, who = torch.addmm(squares, rows, x.T, alpha=-2.0).topk(
            arguments.neighbours, largest=False
        )
        distance = (near + rows.square().sum(1, keepdim=True)).clamp(min=1e-12).sqrt()
        votes = rows.new_zeros(len(rows), num_classes).scatter_add_(1, y[who], 1.0 / distance)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def logistic_regression(train: Rows, test: Rows, arguments: argparse.Namespace) -> Tensor:
    """Multinomial logistic regression with an L2 penalty, for a number of iterations at most."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=arguments.logistic_c, max_iter=arguments.logistic_iterations)
    return _sklearn(model, train, test)


def support_vector_machine(train: Rows, test: Rows, arguments: argparse.Namespace) -> Tensor:
    """A support vector machine with the RBF kernel, on --svm-rows rows, every class in its share."""
    from sklearn.svm import SVC

    x, y = train
    if 0 < arguments.svm_rows < len(y):
        generator = torch.Generator().manual_seed(arguments.seed)
        rows, _ = stratified_split(y, arguments.svm_rows, generator=generator)
        train = x[rows], y[rows]
    # "scale" of scikit-learn, 1 / (columns * variance), times a factor.
    gamma = arguments.svm_gamma / (x.shape[1] * x.var().item())
    model = SVC(C=arguments.svm_c, gamma=gamma, cache_size=arguments.svm_cache)
    return _sklearn(model, train, test)


def _sklearn(model: Any, train: Rows, test: Rows) -> Tensor:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The largest number of iterations is a flag: reaching it stops early, and regularises.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train[0].numpy(), train[1].numpy())
    return torch.as_tensor(model.predict(test[0].numpy()))


CLASSIFIERS: dict[str, Callable[[Rows, Rows, argparse.Namespace], Tensor]] = {
    "knn": nearest_neighbours,
    "logistic": logistic_regression,
    "svm": support_vector_machine,
}


def classify(
    spaces: dict[str, Rows], labels: Rows, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Error of every classifier in every space, with the standard error over test images.

    :param spaces: training and test rows by the name of the space.
    :param labels: training and test labels.
    """
    results: dict[str, Any] = {}
    y, y_test = labels
    for name in arguments.classifiers:
        results[name] = {}
        for space, (x, x_test) in spaces.items():
            started = time.perf_counter()
            predicted = CLASSIFIERS[name]((x, y), (x_test, y_test), arguments)
            error = (predicted != y_test).double().mean().item()
            result = {
                "error": error,
                "std_error": (error * (1 - error) / len(y_test)) ** 0.5,
                "seconds": time.perf_counter() - started,
            }
            results[name][space] = result
            print(
                f"{name:9s} {space:9s} error {100 * error:.2f} +- {100 * result['std_error']:.2f} %, "
                f"{result['seconds']:.0f} s",
                flush=True,
            )
    return results


# --- one labelled image a class -----------------------------------------------------------------


def episode(x: Tensor, y: Tensor, shots: int, metric: str, rng: np.random.Generator) -> float:
    """Accuracy where ``shots`` images of every class are known and all others are asked for.

    A class is as far away as its nearest known image.

    :param Tensor x: rows of the new classes.
    :param Tensor y: their classes.
    :param str metric: "euclidean" or "cosine".
    """
    classes = y.unique()
    known = [torch.as_tensor(rng.permutation(np.flatnonzero(y == k))[:shots]) for k in classes]
    asked = torch.ones(len(y), dtype=torch.bool)
    asked[torch.cat(known)] = False
    rows, examples = x[asked], x[torch.cat(known)]
    if metric == "cosine":
        rows, examples = normalize(rows, dim=1), normalize(examples, dim=1)
    distance = torch.cdist(rows, examples).reshape(len(rows), len(classes), shots)
    predicted = classes[distance.amin(2).argmin(1)]
    return float((predicted == y[asked]).double().mean())


def one_shot(spaces: dict[str, Tensor], y: Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    """Mean accuracy over random episodes, the same ones in every space.

    :param spaces: rows of the new classes by the name of the space.
    :param Tensor y: their classes.
    """
    results: dict[str, Any] = {}
    for shots in arguments.shots:
        for metric in ("euclidean", "cosine"):
            values = {}
            for space, x in spaces.items():
                rng = np.random.default_rng(arguments.seed)
                runs = [episode(x, y, shots, metric, rng) for _ in range(arguments.episodes)]
                values[space] = np.array(runs)
            gain = values["features"] - values["pixels"]
            scores = {name: _mean(v) for name, v in {**values, "features - pixels": gain}.items()}
            results[f"{shots}-shot {metric}"] = scores
            line = ", ".join(
                f"{name} {100 * s['mean']:.2f} +- {100 * s['std_error']:.2f}"
                for name, s in scores.items()
            )
            print(f"{shots}-shot {metric:9s} accuracy in %: {line}", flush=True)
    return results


def _mean(values: Any) -> dict[str, float]:
    """Mean over episodes with its Monte Carlo error: one machine, one choice of classes, one test set."""
    return {
        "mean": float(values.mean()),
        "std_error": float(values.std(ddof=1) / len(values) ** 0.5),
    }


# --- the program --------------------------------------------------------------------------------


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the parts, print their tables and write the report."""
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    x, y, x_test, y_test = load_images(arguments)
    report: dict[str, Any] = {"options": dict(vars(arguments))}
    if "features" in arguments.parts:
        rbms = make_rbms(arguments, x)
        spaces = {"features": (features(rbms, x), features(rbms, x_test)), "pixels": (x, x_test)}
        spaces = {name: spaces[name] for name in arguments.spaces}
        report["features"] = classify(spaces, (y, y_test), arguments)
        _write(report, output)
    if "one-shot" in arguments.parts:
        new, new_test = (torch.isin(t, torch.tensor(arguments.hold_out)) for t in (y, y_test))
        arguments.output, arguments.model = str(output / "one_shot"), arguments.one_shot_model
        # It has never seen an image of the classes that are held out.
        rbms = make_rbms(arguments, x[~new])
        shown = x_test[new_test]
        report["one-shot"] = one_shot(
            {"features": features(rbms, shown), "pixels": shown}, y_test[new_test], arguments
        )
        _write(report, output)
    return report


def _write(report: dict[str, Any], output: Path) -> None:
    (output / "report.json").write_text(json.dumps(report, indent=1))


def make_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_rbm_options(parser)
    parser.set_defaults(output="runs/features_one_shot")
    group = parser.add_argument_group("features")
    parts = ["features", "one-shot"]
    group.add_argument("--parts", nargs="+", default=parts, choices=parts)
    names = list(CLASSIFIERS)
    group.add_argument("--classifiers", nargs="+", default=names, choices=names)
    spaces = ["features", "pixels"]
    group.add_argument("--spaces", nargs="+", default=spaces, choices=spaces)
    group.add_argument("--neighbours", type=int, default=3)
    group.add_argument("--logistic-c", type=float, default=1.0, help="inverse of the L2 penalty")
    group.add_argument("--logistic-iterations", type=int, default=400)
    group.add_argument("--svm-rows", type=int, default=0, help="training rows, 0 for all")
    group.add_argument("--svm-c", type=float, default=10.0)
    group.add_argument("--svm-gamma", type=float, default=1.0, help="in units of 'scale'")
    group.add_argument("--svm-cache", type=float, default=2000.0, help="MB of the kernel cache")
    group = parser.add_argument_group("one-shot learning")
    group.add_argument("--hold-out", type=int, nargs="+", default=[7, 8, 9], metavar="CLASS")
    group.add_argument("--one-shot-model", nargs="+", help="RBMs trained without these classes")
    group.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    group.add_argument("--episodes", type=int, default=200)
    return parser


def use_smoke_options(arguments: argparse.Namespace) -> None:
    """Seconds on the digits, which are few: with momentum and offsets."""
    arguments.centered, arguments.momentum, arguments.learning_rate = True, 0.9, 0.05
    arguments.activation = 0.1
    arguments.data, arguments.hidden, arguments.num_epochs = "digits", [64], 30
    arguments.batch_size, arguments.progress, arguments.episodes = 20, False, 30


if __name__ == "__main__":
    options = make_parser().parse_args()
    if options.smoke:
        use_smoke_options(options)
    main(options)
