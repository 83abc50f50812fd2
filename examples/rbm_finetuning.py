# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning of a network that starts as an RBM, a stack of them or a DBM, with many and with few labels.

The machines are trained on all training images without labels; then N labels train the network, and the same
network from random weights. That of a deep Boltzmann machine (of ``dbm_mnist.py``, by ``--model``) has the
mean-field state of the layers above as extra inputs. Options are chosen for every N and start within the N
labels: one tenth of them validates, and of few labels folds of a cross-validation.

    PYRO_EBM_DATA=/path/to/data python examples/rbm_finetuning.py
    python examples/rbm_finetuning.py --model runs/rbm_finetuning/rbm_1.safetensors --labels 100 1000
    python examples/rbm_finetuning.py --model runs/dbm_mnist/model.safetensors --labels 60000
    python examples/rbm_finetuning.py --smoke
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from feature_rbm import add_rbm_options, load_images, make_rbms
from label_runs import Make, Setting, choose_and_fit, product, self_train
from torch import Tensor

from pyro_ebm import nn, plotting
from pyro_ebm.training.finetuning import FeedForwardClassifier, stratified_split


def settings(start: str, num_labels: int, arguments: argparse.Namespace) -> list[Setting]:
    """What is tried for a number of labels, the likeliest first."""
    if num_labels <= 300:
        base = Setting(epochs=80, batch_size=32, weight_decay=1e-3)
        noise: dict[str, Any] = {"dropout": (0.5, 0.0)}
        # The softmax layer first, as logistic regression of the features; then they may move.
        start_base = replace(base, head_epochs=40, epochs=40, learning_rate=0.01, weight_decay=3e-3)
        moves: dict[str, Any] = {"factor": (0.1, 0.01)}
    elif num_labels <= 3000:
        base = Setting(epochs=60, batch_size=32, dropout=0.5, averaging=0.99)
        noise = {"input_dropout": (0.0, 0.2)}
        start_base = replace(base, epochs=40, learning_rate=0.01)
        moves = {"factor": (0.1, 0.03)}
    else:
        base = Setting(epochs=60, dropout=0.5, averaging=0.999)
        noise = {"input_dropout": (0.2,)}
        start_base = replace(base, learning_rate=3e-3)
        moves = {"factor": (0.3, 0.1)}
    if start != "random":
        found = product(start_base, **moves, **noise)
    else:
        # As many settings: here all layers have one rate.
        found = product(base, learning_rate=(1e-3, 3e-3), **noise)
    if arguments.settings:
        found = found[: arguments.settings]
    if arguments.finetune_epochs:
        found = [replace(s, epochs=arguments.finetune_epochs) for s in found]
    changes = {
        "learning_rate": arguments.finetune_learning_rate,
        "dropout": arguments.dropout_of_hidden,
        "input_dropout": arguments.dropout_of_inputs,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    # What is set by hand is no choice any more.
    return list(dict.fromkeys(replace(s, **given) for s in found))


def makers(machines: list[Any], num_classes: int, arguments: argparse.Namespace) -> dict[str, Make]:
    """The two starts of the same network."""
    if isinstance(machines[0], nn.DBM):
        if len(machines) > 1:
            raise ValueError(f"--model takes one DBM or a stack of RBMs, got {len(machines)} files")
        return _deep_makers(machines[0], num_classes, arguments)
    return _stack_makers(machines, num_classes)


def _deep_makers(
    module: nn.DBM, num_classes: int, arguments: argparse.Namespace
) -> dict[str, Make]:
    families = {(layer.family, str(layer.options)) for layer in list(module.layers)[1:]}
    if len(families) > 1:
        raise ValueError(f"random layers are all of one family, the machine's are {families}")
    layer = module.layers[1]

    def from_dbm(**options: Any) -> FeedForwardClassifier:
        return FeedForwardClassifier.from_dbm(
            module,
            num_classes,
            extra_inputs=arguments.extra_inputs,
            max_mean_field_updates=arguments.network_mean_field_updates,
            **options,
        )

    def random(**options: Any) -> FeedForwardClassifier:
        return FeedForwardClassifier.random(
            module.sizes, num_classes, hidden=layer.family, hidden_options=layer.options, **options
        )

    return {"dbm": from_dbm, "random": random}


def _stack_makers(rbms: list[nn.RBM], num_classes: int) -> dict[str, Make]:
    sizes = [len(rbms[0].weight), *(rbm.weight.shape[1] for rbm in rbms)]
    family = rbms[0].hidden

    def from_rbms(**options: Any) -> FeedForwardClassifier:
        return FeedForwardClassifier.from_rbms(rbms, num_classes, **options)

    def random(**options: Any) -> FeedForwardClassifier:
        return FeedForwardClassifier.random(
            sizes, num_classes, hidden=family.family, hidden_options=family.options, **options
        )

    return {"rbm": from_rbms, "random": random}


def run_labels(
    make: Make,
    found: list[Setting],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_labels: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One start with one number of labels: accuracy by label seed, and confusions of all of them."""
    (x, y), (x_test, y_test) = train, test
    few = num_labels <= arguments.folds_below
    num_seeds = arguments.label_seeds if num_labels <= arguments.one_seed_above else 1
    accuracies, predictions, chosen = [], [], []
    started = time.perf_counter()
    for seed in range(arguments.first_seed, arguments.first_seed + num_seeds):
        rows = torch.arange(len(y))
        if num_labels < len(y):
            generator = torch.Generator().manual_seed(seed)
            rows, _ = stratified_split(y, num_labels, generator=generator)
        classifier, report = choose_and_fit(
            make,
            found,
            x[rows],
            y[rows],
            num_folds=arguments.folds if few else 1,
            num_validation=min(num_labels // 10, 5000),
            refit=num_labels <= arguments.refit_below,
            seed=seed,
        )
        if few and arguments.self_training:
            others = torch.ones(len(y), dtype=torch.bool)
            others[rows] = False
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(int(others.sum()), generator=generator)
            unlabelled = x[others][order[: arguments.unlabelled_rows]]
            rounds = arguments.self_training
            classifier = self_train(
                make, classifier, x[rows], y[rows], unlabelled, rounds=rounds, seed=seed
            )
        predictions.append(classifier.predict(x_test))
        accuracies.append((predictions[-1] == y_test).double().mean().item())
        chosen.append(report)
    values = torch.tensor(accuracies, dtype=torch.float64)
    # One seed has no spread: what is left is that of the test images.
    error = (values * (1 - values) / len(y_test)).sqrt()[0]
    if num_seeds > 1:
        error = values.std() / num_seeds**0.5
    return {
        "mean": values.mean().item(),
        "std_error": error.item(),
        "std_error_over": "label seeds" if num_seeds > 1 else "test images",
        "accuracies": accuracies,
        "chosen": chosen,
        "seconds": time.perf_counter() - started,
        "confusion": confusion(y_test.repeat(num_seeds), torch.cat(predictions)).tolist(),
        "predictions": predictions,
    }


def confusion(true: Tensor, predicted: Tensor) -> Tensor:
    """Counts of rows by true class (row) and predicted class (column)."""
    size = int(max(true.max(), predicted.max())) + 1
    return (true * size + predicted).bincount(minlength=size * size).reshape(size, size)


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, print a table, write the report and pictures of confusions."""
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    x, y, x_test, y_test = load_images(arguments)
    machines: list[Any] = list(make_rbms(arguments, x))
    results: dict[str, dict[str, Any]] = {}
    for num_labels in arguments.labels:
        num_labels = min(num_labels, len(y))
        results[str(num_labels)] = {}
        for start, make in makers(machines, int(y.max()) + 1, arguments).items():
            if start not in arguments.starts:
                continue
            found = settings(start, num_labels, arguments)
            result = run_labels(make, found, (x, y), (x_test, y_test), num_labels, arguments)
            predicted = torch.cat(result.pop("predictions"))
            true = y_test.repeat(len(predicted) // len(y_test))
            title = f"{num_labels} labels, start: {start}"
            figure = plotting.confusion_matrix(true, predicted, title=title)
            plotting.save(figure, output / f"confusion_{num_labels}_{start}.png")
            results[str(num_labels)][start] = result
            print(
                f"{num_labels:6d} labels, start {start:6s}: accuracy {100 * result['mean']:.2f} +- "
                f"{100 * result['std_error']:.2f} % ({result['std_error_over']}), "
                f"{result['seconds']:.0f} s",
                flush=True,
            )
            report = {"options": vars(arguments), "results": results}
            (output / "report.json").write_text(json.dumps(report, indent=1))
    return results


def make_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_rbm_options(parser)
    parser.set_defaults(output="runs/rbm_finetuning")
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--labels", type=int, nargs="+", default=[60000, 10000, 1000, 100])
    group.add_argument("--starts", nargs="+", default=["rbm", "dbm", "random"])
    group.add_argument("--label-seeds", type=int, default=10, help="label sets of few labels")
    group.add_argument("--first-seed", type=int, default=0)
    group.add_argument("--one-seed-above", type=int, default=20000, metavar="N")
    group.add_argument("--folds", type=int, default=4, help="of the cross-validation of few labels")
    group.add_argument("--folds-below", type=int, default=2000, metavar="N")
    group.add_argument(
        "--refit-below",
        type=int,
        default=20000,
        metavar="N",
        help="up to N labels, the chosen setting is trained again with validation rows too",
    )
    group.add_argument(
        "--self-training",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="of few labels: train again with training images that the network labels itself, from both "
        "starts (an extra: their true labels are not used)",
    )
    group.add_argument("--unlabelled-rows", type=int, default=10000, help="of self-training")
    group.add_argument("--settings", type=int, default=0, help="only the first ones; 0 for all")
    group.add_argument("--finetune-epochs", type=int, default=0, help="0 for those of the settings")
    group.add_argument("--finetune-learning-rate", type=float, help="instead of the settings'")
    group.add_argument(
        "--dropout-of-hidden",
        type=float,
        metavar="P",
        help="of hidden units, instead of the settings'",
    )
    group.add_argument(
        "--dropout-of-inputs", type=float, metavar="P", help="of inputs, instead of the settings'"
    )
    group.add_argument(
        "--extra-inputs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of a DBM: whether layers see the mean-field state of the layer above",
    )
    group.add_argument(
        "--network-mean-field-updates",
        type=int,
        default=100,
        metavar="N",
        help="largest number of updates that make extra inputs",
    )
    return parser


def use_smoke_options(arguments: argparse.Namespace) -> None:
    """Seconds on the digits, which are few: with momentum and offsets."""
    arguments.centered, arguments.momentum, arguments.learning_rate = True, 0.9, 0.05
    arguments.activation = 0.1
    arguments.data, arguments.hidden, arguments.num_epochs = "digits", [64], 30
    arguments.labels, arguments.label_seeds, arguments.folds = [500, 100], 2, 2
    arguments.settings, arguments.finetune_epochs, arguments.progress = 2, 20, False
    arguments.batch_size, arguments.finetune_learning_rate = 20, 0.01


if __name__ == "__main__":
    options = make_parser().parse_args()
    if options.smoke:
        use_smoke_options(options)
    main(options)
