# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""RBM collaborative filtering: ratings of items by users, of which a few per cent are known.

The data are made here, with a known truth (``rating_data.py``), so that there is a floor: what the true
model would predict. A machine has a group of five states for every item and a row for every user
(Salakhutdinov, Mnih and Hinton, *Restricted Boltzmann machines for collaborative filtering*, 2007). Items
that a user has not rated are taken in two ways: as **absent** (every user is a machine of the own items,
with CD-k; predictions are exact) and as **marginal** (they exist and were not seen: one machine for all
users, missing ratings summed out). Both are compared with the counts of an item, biases of users and items,
and matrix factorisation, by the error of the expected rating, the log-likelihood of the rating and the
calibration on ratings that were held out.

    python examples/collaborative_filtering.py
    python examples/collaborative_filtering.py --users 500 --items 100 --density 0.1
    python examples/collaborative_filtering.py --smoke
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baselines.ratings import fit_als, fit_biases, item_probabilities
from rating_data import NUM_STATES, Ratings, make_ratings
from torch import Generator, Tensor
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.infer import impute, predict_absent
from pyro_ebm.plotting.figures import COLOURS, new_figure, plain, save
from pyro_ebm.predictive import classification_report, reliability_table
from pyro_ebm.training import Callback, Trainer

#: Options of a run that differ from those of ``TrainerConfig``.
DEFAULTS = {
    "num_epochs": 60,
    "batch_size": 100,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "num_steps": [1] * 20 + [3],
    "weight_decay": 0.2,
    "decoupled_weight_decay": True,
    "monitor": "validation_nll",
    "patience": 15,
}
#: Users of one call of the imputation.
_CHUNK_USERS = 250
#: Hidden units up to which the marginal machine is trained by the exact gradient.
_MAX_EXACT = 8


class Data:
    """The ratings, split, and the truth.

    :param options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.truth, ratings, self.probabilities = make_ratings(
            options.users,
            options.items,
            rank=options.rank,
            density=options.density,
            selection=options.selection,
            seed=options.seed,
        )
        generator = Generator().manual_seed(options.seed)
        self.validation, self.test, self.train = ratings.split(0.1, 0.2, generator=generator)
        # Bytes and bits: a row of floating-point numbers is made of a batch only.
        self.rows, self.observed = self.train.one_hot(), self.train.mask()


# --- predictions of the baselines -----------------------------------------------------------------


def normal_bins(expected: Tensor, spread: float) -> Tensor:
    """Probabilities of the ratings where they are a normal variable, cut halfway between them."""
    edges = torch.arange(NUM_STATES - 1) + 0.5
    below = torch.special.ndtr((edges - expected.unsqueeze(-1)) / spread)
    ends = torch.cat([torch.zeros_like(below[:, :1]), below, torch.ones_like(below[:, :1])], -1)
    return ends.diff(dim=-1).clamp(min=1e-6)


def spread_of(model: Any, ratings: Ratings) -> float:
    """Standard deviation of what a model of expected ratings leaves."""
    rest = ratings.value - model.expected(ratings.user, ratings.item)
    return rest.square().mean().sqrt().item()


def choose_als(options: argparse.Namespace, data: Data) -> tuple[Any, dict[str, float]]:
    """The rank and the penalty of matrix factorisation with the least error on validation ratings."""
    found = []
    for rank in options.als_ranks:
        for ridge in options.als_ridges:
            model = fit_als(data.train, rank, ridge, seed=options.seed)
            found.append((spread_of(model, data.validation), rank, ridge, model))
    error, rank, ridge, model = min(found, key=lambda f: f[0])
    return model, {"rank": rank, "ridge": ridge, "validation_rmse": error}


def baselines(options: argparse.Namespace, data: Data) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """p(rating) of the test pairs by method, and what was chosen."""
    test = data.test
    biases = fit_biases(data.train)
    factors, chosen = choose_als(options, data)
    found = {
        "truth": data.probabilities[test.user, test.item],
        "true model": data.truth.predict(
            data.train,
            test.user,
            test.item,
            options.truth_draws,
            Generator().manual_seed(options.seed),
        ),
        "item counts": item_probabilities(data.train, NUM_STATES)[test.item],
    }
    for name, model in (("biases", biases), ("matrix factorisation", factors)):
        expected = model.expected(test.user, test.item)
        found[name] = normal_bins(expected, spread_of(model, data.validation))
    return found, {"matrix_factorisation": chosen}


# --- the machines ---------------------------------------------------------------------------------


class ValidationScore(Callback):
    """Adds the mean of -log p(rating) of the validation ratings to every record of the history.

    :param predict: gives p(rating) of some pairs by a module.
    :param Ratings asked: the validation ratings.
    """

    def __init__(self, predict: Callable[[nn.RBM, Ratings], Tensor], asked: Ratings) -> None:
        self.predict = predict
        self.asked = asked

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """See the class."""
        p = self.predict(trainer.averaged, self.asked)
        record["validation_nll"] = -p.gather(1, self.asked.value.unsqueeze(1)).log().mean().item()


def train(
    options: argparse.Namespace, data: Data, missing: str, predict: Any
) -> tuple[nn.RBM, list[dict[str, Any]]]:
    """A machine of all items after the epoch with the best validation score, and the history."""
    module = nn.RBM(
        data.rows.shape[1],
        options.hidden if missing == "absent" else options.marginal_hidden,
        visible="categorical",
        visible_options={"num_states": NUM_STATES},
        weight_scale=0.05,
        seed=options.seed,
    )
    # One row whose means are the shares of every item's known ratings.
    module.init_from_data(item_probabilities(data.train, NUM_STATES).reshape(1, -1))
    path = options.output / f"{missing}.safetensors"
    own: dict[str, Any] = {"missing": missing, "best_checkpoint": path, "seed": options.seed}
    if missing == "marginal" and options.marginal_hidden <= _MAX_EXACT:
        # Of 200 items 190 are summed out: a gradient without the noise of drawing them.
        own["negative_phase"] = "exact"
    trainer = Trainer(module, training_config(options, **own))
    callbacks = [ValidationScore(predict, data.validation)]
    history = trainer.fit(data.rows, observed=data.observed, callbacks=callbacks)
    best = Trainer.from_checkpoint(path).averaged
    pyro_ebm.save(best, path)
    return best, history


@torch.no_grad()
def predict_own(module: nn.RBM, data: Data, asked: Ratings, mean_field: bool = False) -> Tensor:
    """p(rating) under the machine of a user's items and the one that is asked for."""
    known = (module(), data.rows, data.observed, asked.user, asked.item)
    return predict_absent(*known, mean_field=mean_field)


@torch.no_grad()
def predict_marginal(
    options: argparse.Namespace, module: nn.RBM, data: Data, asked: Ratings
) -> Tensor:
    """p(rating | known ratings), all other ratings summed out; shape ``(questions, 5)``.

    Exact where the hidden layer has at most 2^12 states, otherwise from Gibbs chains.
    """
    found = torch.empty(len(asked), NUM_STATES)
    generator = Generator().manual_seed(options.seed)
    dist = module()
    # The mean of a table needs no draws.
    draws = 1 if module.hidden().num_states <= 2**12 else options.chains
    for start in range(0, asked.num_users, _CHUNK_USERS):
        rows = slice(start, start + _CHUNK_USERS)
        filled = impute(
            dist,
            data.rows[rows],
            data.observed[rows],
            draws,
            options.sweeps,
            generator=generator,
        )
        mine = (asked.user >= start) & (asked.user < start + _CHUNK_USERS)
        means = filled.mean.unflatten(-1, (-1, NUM_STATES))
        found[mine] = means[asked.user[mine] - start, asked.item[mine]]
    return found


def machines(options: argparse.Namespace, data: Data) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """p(rating) of the test pairs by the machines of both kinds, and how they were trained."""
    found, records = {}, {}
    for missing in options.missing_kinds:

        def predict(module: nn.RBM, asked: Ratings, missing: str = missing) -> Tensor:
            if missing == "absent":
                return predict_own(module, data, asked)
            return predict_marginal(options, module, data, asked)

        started = time.perf_counter()
        module, history = train(options, data, missing, predict)
        seconds = round(time.perf_counter() - started, 1)
        records[missing] = {"train_seconds": seconds, "history": history}
        print(f"{missing}: {len(history)} epochs in {seconds} s", flush=True)
        found[f"{missing} RBM"] = predict(module, data.test)
        if missing == "absent":
            found["absent RBM, mean field"] = predict_own(module, data, data.test, mean_field=True)
    return found, records


# --- the report -----------------------------------------------------------------------------------


def scores(probabilities: Tensor, value: Tensor) -> dict[str, Any]:
    """Errors of the expected rating and of p(rating), each with its standard error over ratings."""
    stars = torch.arange(NUM_STATES, dtype=probabilities.dtype)
    square = (probabilities @ stars - value).double().square()
    rmse = square.mean().sqrt()
    report = classification_report(probabilities.log(), value)
    log_p = probabilities.double().gather(1, value.unsqueeze(1)).log()
    return {
        "rmse": rmse.item(),
        "rmse_std_error": (square.std() / len(value) ** 0.5 / (2 * rmse)).item(),
        "nll": -log_p.mean().item(),
        "nll_std_error": (log_p.std() / len(value) ** 0.5).item(),
        "calibration_error": report.calibration_error.value,
    }


def draw(found: dict[str, Tensor], value: Tensor, path: Path) -> None:
    """How often ratings are as probable as methods say: every p(rating = k) against the share."""
    figure = new_figure(5.2, 4.6)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for (name, p), colour in zip(found.items(), COLOURS * 2, strict=False):
        hit = torch.nn.functional.one_hot(value, NUM_STATES).bool()
        table = reliability_table(p.double().clamp(0, 1).flatten(), hit.flatten(), num_bins=10)
        style = "o-" if "RBM" in name else ".--"
        shares = [share.value for share in table.accuracy]
        ax.plot(
            table.confidence, shares, style, color=colour, label=name, linewidth=1, markersize=4
        )
    ax.set_xlabel("predicted probability of a rating", fontsize=9)
    ax.set_ylabel("share of ratings", fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    plain(ax)
    save(figure, path)


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Train, predict and compare; returns what the report holds."""
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    data = Data(options)
    sizes = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    print(f"{options.users} users, {options.items} items, ratings: {sizes}", flush=True)
    found, chosen = baselines(options, data)
    more, records = machines(options, data)
    found |= more
    results = {name: scores(p, data.test.value) for name, p in found.items()}
    print(f"{'':24}{'RMSE':>16}{'NLL':>16}{'calibration':>13}")
    for name, row in results.items():
        rmse = f"{row['rmse']:.4f} +- {row['rmse_std_error']:.4f}"
        nll = f"{row['nll']:.4f} +- {row['nll_std_error']:.4f}"
        print(f"{name:24}{rmse:>18}{nll:>18}{row['calibration_error']:>9.4f}")
    draw(found, data.test.value, options.output / "calibration.png")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    report = {
        "settings": settings,
        "ratings": sizes,
        "results": results,
        "chosen": chosen,
        "machines": records,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {options.output} after {report['seconds']} s")
    return report


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--density", type=float, default=0.05, help="share of rated pairs")
    parser.add_argument("--rank", type=int, default=4, help="factors of the true model")
    parser.add_argument(
        "--selection", type=float, default=0.5, help="how much more often liked items are rated"
    )
    parser.add_argument("--hidden", type=int, default=20, help="hidden units of the absent RBM")
    parser.add_argument("--marginal-hidden", type=int, default=8, help="of the marginal RBM")
    parser.add_argument(
        "--missing-kinds", nargs="+", default=["absent", "marginal"], choices=["absent", "marginal"]
    )
    parser.add_argument("--chains", type=int, default=20, help="of predictions beyond 12 units")
    parser.add_argument("--sweeps", type=int, default=100, help="of these chains")
    parser.add_argument("--als-ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--als-ridges", type=float, nargs="+", default=[1.0, 3.0, 10.0, 30.0])
    parser.add_argument("--truth-draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/collaborative_filtering"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on few users")
    add_training_options(parser, **DEFAULTS)
    options = parser.parse_args(words)
    if options.smoke:
        options.users, options.items, options.density = 400, 30, 0.6
        options.num_epochs, options.hidden, options.marginal_hidden = 40, 6, 4
        options.als_ranks, options.als_ridges, options.truth_draws = [2, 4], [3.0, 10.0], 2000
        options.learning_rate, options.weight_decay = 0.02, 0.1
    return options


if __name__ == "__main__":
    main(parse())
