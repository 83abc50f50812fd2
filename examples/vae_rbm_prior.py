# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A variational autoencoder with an RBM prior against its twin with independent bits.

Both have as many latent bits and as many parameters (the twin's networks are wider by what the machine's
weights are), see the same images, and are trained by the same estimators: pathwise gradients of relaxed bits
at first, score-function gradients with leave-one-out control variates at the end. The gradient of the
prior's log Z comes from persistent chains, its value for the test bound from estimates of both sides.

    PYRO_EBM_DATA=/path/to/data python examples/vae_rbm_prior.py --output runs/vae-0
    python examples/vae_rbm_prior.py --relaxed-epochs 0 --output runs/vae-score
    python examples/vae_rbm_prior.py --split validation --learning-rate 0.004 --output runs/vae-rate
    python examples/vae_rbm_prior.py --load runs/vae-0 --rows 1000 --gain-particles 500 2000 8000
    python examples/vae_rbm_prior.py --smoke
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import vae_pictures
from torch import Tensor
from vae_evaluation import bound_terms, likelihood_bound, log_partition, summary
from vae_model import PRIORS, VAE, build, count_parameters
from vae_training import Training

from pyro_ebm import datasets, plotting

#: Chains and temperatures of the log Z of learning curves.
QUICK = (50, 1500)
SMOKE = {
    "data": "digits",
    "validation": 237,
    "latent": 20,
    "hidden": 12,
    "encoder": [40],
    "decoder": [],
    "epochs": 16,
    "relaxed_epochs": 8,
    "decay_from": 8,
    "warmup": 5,
    "batch_size": 40,
    "learning_rate": 0.02,
    "prior_learning_rate": 0.03,
    "every": 4,
    "chains": 50,
    "importance": 50,
    "gain_particles": [10, 50],
    "draw_sweeps": 300,
    "progress": False,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a list of arguments for a notebook."""
    trained = _trained()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], parents=[trained])
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="evaluated")
    parser.add_argument(
        "--rows", type=int, help="images evaluated, the first ones; all if not given"
    )
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    _add_evaluation(parser)
    parser.add_argument("--output", type=Path, help="a folder for the report and pictures")
    parser.add_argument("--load", type=Path, help="folder of an earlier run; nothing is trained")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    if options.load:
        # An option that is not given keeps what the namespace has.
        absent = argparse.Namespace(**dict.fromkeys(vars(options)))
        given = vars(parser.parse_args(arguments, absent))
        names = vars(trained.parse_args([]))
        fixed = [name for name in names if given[name] is not None]
        if fixed:
            flags = ", ".join("--" + name.replace("_", "-") for name in fixed)
            parser.error(f"--load takes the settings of training from the run, got {flags} as well")
        if options.output and options.output.resolve() == options.load.resolve():
            parser.error("--output must not be the folder of --load, whose report it would replace")
        settings = _report(options.load)["settings"]
        vars(options).update({name: settings[name] for name in names if name in settings})
    return options


def _report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def _trained() -> argparse.ArgumentParser:
    """What a trained model depends on."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--validation", type=int, default=10_000, help="training images held out")
    parser.add_argument("--seed", type=int, default=0)
    _add_model(parser)
    _add_training(parser)
    return parser


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--importance", type=int, default=500, help="particles of the test bound")
    group.add_argument(
        "--gain-particles",
        type=int,
        nargs="*",
        default=[],
        help="numbers of particles for which the gain is given as well",
    )
    group.add_argument("--gain-rows", type=int, default=1000, help="images of these, first ones")
    group.add_argument("--ais-chains", type=int, default=200)
    group.add_argument("--ais-temperatures", type=int, default=5000)
    group.add_argument("--draw-sweeps", type=int, default=5000, help="of chains of the pictures")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--latent", type=int, default=128, help="bits of z")
    group.add_argument("--hidden", type=int, default=128, help="hidden units of the RBM prior")
    group.add_argument("--encoder", type=int, nargs="*", default=[200], help="its hidden layers")
    group.add_argument("--decoder", type=int, nargs="*", default=[200], help="its hidden layers")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--relaxed-epochs",
        type=int,
        default=20,
        help="first ones, by pathwise gradients of relaxed bits",
    )
    group.add_argument("--temperature", type=float, default=0.5, help="of relaxed bits")
    group.add_argument(
        "--particles", type=int, default=2, help="draws of z of score-function gradients"
    )
    group.add_argument("--epochs", type=int, default=30)
    group.add_argument("--batch-size", type=int, default=100)
    group.add_argument("--learning-rate", type=float, default=2e-3)
    group.add_argument("--prior-learning-rate", type=float, default=2e-3)
    group.add_argument(
        "--twin-learning-rate",
        type=float,
        help="both rates of the model with independent bits, where another one suits it better",
    )
    group.add_argument(
        "--decay-from", type=int, default=15, help="epoch from which rates fall to 0"
    )
    group.add_argument(
        "--warmup", type=int, default=8, help="epochs in which the KL's weight grows to 1"
    )
    group.add_argument("--chains", type=int, default=100, help="persistent chains of the prior")
    group.add_argument("--sweeps", type=int, default=5, help="block Gibbs sweeps a step")
    group.add_argument("--every", type=int, default=2, help="epochs from record to record")


def fit(prior: Any, data: datasets.Dataset, options: argparse.Namespace) -> tuple[VAE, list[Any]]:
    """A trained model, and its bound of 1000 validation images over epochs."""
    images = data.train()
    held_out = data.binarized("validation", seed=0)[:1000]
    vae = build(prior, images, options)
    if prior == "independent" and options.twin_learning_rate is not None:
        options = argparse.Namespace(**vars(options))
        options.learning_rate = options.prior_learning_rate = options.twin_learning_rate

    def evaluate(model: VAE) -> dict[str, float]:
        return summary(bound_terms(model, held_out, log_partition(model, held_out, *QUICK)))

    return vae, Training(vae, images, options).run(evaluate)


def load(prior: Any, data: datasets.Dataset, options: argparse.Namespace) -> tuple[VAE, list[Any]]:
    """The model of an earlier run, and its history."""
    vae = build(prior, data.train(), options)
    vae.load_state_dict(torch.load(options.load / f"{prior}.pt", weights_only=True))
    return vae, _report(options.load)[prior]["history"]


def judge(
    vae: VAE, images: Tensor, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The evidence lower bound and its terms, and the tighter bounds by importance weighting.

    :returns: a report; and the tighter bounds of images, by number of particles as a word, ``"all"`` for
        those of all images by ``options.importance``.
    """
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    log_z = log_partition(
        vae, images[:1000], options.ais_chains, options.ais_temperatures, options.seed
    )
    bound = likelihood_bound(vae, images, log_z, options.importance)
    report: dict[str, Any] = summary(bound_terms(vae, images, log_z))
    report["log_partition"] = log_z.item() if isinstance(log_z, Tensor) else log_z.to_dict()
    report["bound"] = bound.to_dict()
    print(f"ELBO {report['elbo']:.2f} (KL {report['divergence']:.2f}); {bound}")
    few = images[: options.gain_rows]
    rows = {
        str(count): likelihood_bound(vae, few, log_z, count).rows
        for count in options.gain_particles
    }
    report["seconds"] = time.perf_counter() - started
    return report, {**rows, "all": bound.rows}


def compare(rows: Mapping[str, Mapping[str, Tensor]], reports: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine gains, in nats per image, paired over images.

    Both bounds rise with the number of particles, that of the wider gap further: this is the gain in the
    bounds, with log Z at the middle of its bracket, and that in the likelihoods for many particles only;
    ``"gain_by_particles"`` shows how far it is from there. ``"gain_between_intervals"`` is the lower end of
    the machine's interval less the upper one of the other. It is no bound of the gain, as the intervals know
    the bias only as far as halving the particles shows it.
    """
    own, other = (reports[name]["evaluation"] for name in ("rbm", "independent"))
    result: dict[str, Any] = {"elbo_gain": own["elbo"] - other["elbo"], "gain_by_particles": {}}
    for count, values in rows["rbm"].items():
        gain = values - rows["independent"][count]
        found = {"gain": gain.mean().item(), "gain_error": gain.std().item() / len(gain) ** 0.5}
        text = f"{found['gain']:.2f} +- {found['gain_error']:.2f} (images) nats per image"
        if count == "all":
            result |= found
            print(f"gain of the RBM prior in the bound: {text}")
        else:
            means = {name: own_rows[count].mean().item() for name, own_rows in rows.items()}
            result["gain_by_particles"][count] = {**found, **means, "images": len(gain)}
            print(f"by {count} particles, {len(gain)} images: {text}")
    result["gain_between_intervals"] = own["bound"]["lower"] - other["bound"]["upper"]
    print(f"between the near ends of both intervals: {result['gain_between_intervals']:.2f}")
    return result


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge every prior, compare, and draw."""
    data = datasets.load(options.data, validation=options.validation)
    images = data.binarized(options.split, seed=0)[: options.rows]
    models, histories, rows = {}, {}, {}
    report: dict[str, Any] = {"command": " ".join(sys.argv), "settings": _settings(options)}
    earlier = _report(options.load) if options.load else None
    if earlier:
        report["loaded"] = {"folder": str(options.load), "command": earlier["command"]}
    for prior in options.priors:
        started = time.process_time()
        obtain = load if earlier else fit
        models[prior], histories[prior] = obtain(prior, data, options)
        seconds = time.process_time() - started
        costs = {"cpu_seconds": earlier[prior]["cpu_seconds"] if earlier else seconds}
        print(
            f"{prior}: {count_parameters(models[prior])} parameters, {costs['cpu_seconds']:.0f} s"
        )
        evaluation, rows[prior] = judge(models[prior], images, options)
        report[prior] = {
            "parameters": count_parameters(models[prior]),
            **costs,
            "history": histories[prior],
            "evaluation": evaluation,
        }
    if set(rows) == set(PRIORS):
        report["comparison"] = compare(rows, report)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        for prior, vae in models.items():
            torch.save(vae.state_dict(), options.output / f"{prior}.pt")
        for name, figure in draw(models, histories, data, options).items():
            plotting.save(figure, options.output / f"{name}.png")
    return report


def draw(
    models: Mapping[str, VAE],
    histories: Mapping[str, list[Any]],
    data: datasets.Dataset,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All pictures by name."""
    shape, sweeps = data.image_shape, options.draw_sweeps
    train, images = (data.binarized(split, seed=0) for split in ("train", options.split))
    return {
        "learning": vae_pictures.picture_of_learning(histories),
        "samples": vae_pictures.picture_of_samples(models, shape, sweeps),
        "reconstructions": vae_pictures.picture_of_reconstructions(models, images[:25], shape),
        "dependence": vae_pictures.picture_of_dependence(models, train[:10_000], sweeps),
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a report says of the options."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "load")}


if __name__ == "__main__":
    run(parse())
