# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Deep Boltzmann machines of images: what ``dbm_mnist.py`` and ``dbm_fashion_mnist.py`` have in common."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dbm_evaluation import evaluate
from dbm_pictures import draw
from torch import Tensor
from training_options import add_training_options, resumed_trainer, training_config

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.training import Trainer, TrainerConfig

STARTS = ("rbm", "random", "pretrained")
#: Options of one start only.
OF_STARTS = {
    "rbm": ("rbm",),
    "rbm_options": ("rbm", "pretrained"),
    "upper_scale": ("rbm",),
    "method": ("pretrained",),
}
#: Tied copies of a layer multiply gradients: rates of greedy training by that of the RBM.
PRETRAINING_RATE = 0.5
#: Numbers of the digits: seconds, and small enough for an exact log Z.
SMOKE = {
    "data": "digits",
    "hidden": [12, 8],
    "num_epochs": 20,
    "num_chains": 20,
    "averaging": 0.98,
    "ais_temperatures": 300,
    "samples": 25,
    "sweeps": 100,
}
SMOKE_RBM = {"num_epochs": 20, "num_chains": 20, "averaging": 0.98}


def parse(
    description: str,
    data: str,
    rbm_recipe: Mapping[str, Any],
    arguments: list[str] | None = None,
    *,
    likelihood: bool = True,
    **defaults: Any,
) -> Any:
    """The options of a program.

    :param str description: its first line of help.
    :param str data: the data set.
    :param rbm_recipe: options of ``TrainerConfig`` for the machine that the lowest layer starts from.
    :param arguments: the command line; that of the process if None.
    :param bool likelihood: whether the program estimates log Z.
    :param defaults: options of ``TrainerConfig`` for the joint training that are its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default=data, choices=datasets.available())
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 1000], metavar="H")
    parser.add_argument("--centered", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--start", default="rbm", choices=STARTS, help="of the joint training")
    parser.add_argument("--rbm", type=Path, help="file of the RBM; trained first if not given")
    parser.add_argument(
        "--rbm-options",
        type=json.loads,
        default={},
        help="options of TrainerConfig of the RBM (or of all that are trained greedily), as JSON",
    )
    parser.add_argument(
        "--method",
        default="salakhutdinov-hinton-2009",
        help="of --start pretrained, see pyro_ebm.training.pretrain",
    )
    parser.add_argument(
        "--upper-scale", type=float, default=0.01, help="of the weights above an RBM"
    )
    parser.add_argument("--weight-scale", type=float, default=0.01, help="of a random start")
    parser.add_argument(
        "--validation", type=int, default=0, help="training images to evaluate on, not the test set"
    )
    parser.add_argument("--seed", type=int, default=0)
    _add_files(parser)
    if likelihood:
        _add_likelihood(parser)
    add_training_options(parser, persistent=True, binarize=True, **defaults)
    options = parser.parse_args(arguments)
    for name, starts in OF_STARTS.items():
        if getattr(options, name) != parser.get_default(name) and options.start not in starts:
            parser.error(f"--{name.replace('_', '-')} has no effect with --start {options.start}")
    own = dict(rbm_recipe)
    if options.start == "pretrained":
        own["learning_rate"] *= PRETRAINING_RATE
    options.rbm_options = {**own, **options.rbm_options}
    if options.smoke:
        vars(options).update(SMOKE)
        options.rbm_options |= SMOKE_RBM
    return options


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What is evaluated, and where it is kept."""
    parser.add_argument("--rows", type=int, help="test images, the first ones; all if not given")
    parser.add_argument("--sweeps", type=int, default=1000, help="Gibbs sweeps of samples")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, help="a folder for the model, report and pictures")
    parser.add_argument("--model", type=Path, help="evaluate this file; nothing is trained")
    parser.add_argument(
        "--skip-training", action="store_true", help="evaluate --model, or the one of --output"
    )
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")


def _add_likelihood(parser: argparse.ArgumentParser) -> None:
    """How log Z is estimated, and what is drawn."""
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=20_000)
    parser.add_argument(
        "--ais-schedule", default="adaptive", help="see pyro_ebm.infer.estimate_log_partition"
    )
    parser.add_argument(
        "--tight", type=int, default=0, metavar="ROWS", help="test images of the tighter estimate"
    )
    parser.add_argument("--tight-chains", type=int, default=20, help="its chains of an image")
    parser.add_argument("--tight-temperatures", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100, help="chains of the pictures")
    parser.add_argument("--frames", type=int, default=40, help="frames of the film of the chains")


def run(options: Any) -> dict[str, Any]:
    """Train, estimate log Z from both sides, and say what the bound of the test images is."""
    model = model_file(options)
    # Validation images are the last ones of the training set; without, the test set is evaluated on.
    data = datasets.load(options.data, validation=options.validation)
    split: Any = "validation" if options.validation else "test"
    train = data.train()
    test = {"binarised": data.binarized(split, seed=0), "grey levels": data.grey_levels(split)}
    report, trainer = _previous(options), None
    if model is None:
        trainer, costs = train_dbm(train, options)
        module = trainer.averaged
        report = {"data": options.data, **describe(options), "training": costs}
    else:
        module = pyro_ebm.load(model)
    report |= {
        "sizes": list(module.sizes),
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    write_report(options, report, module if model is None else None)
    started = time.perf_counter()
    machine = module().detach()
    test = {name: rows[: options.rows] for name, rows in test.items()}
    results = {**describe(options), **evaluate(machine, test, train, options)}
    report["evaluation"] = {**results, "wall_seconds": time.perf_counter() - started}
    write_report(options, report)
    if options.output and options.pictures:
        draw(machine, trainer, test["binarised"], data.image_shape, options)
    return report


def model_file(options: Any) -> Path | None:
    """The file that is evaluated without training; None if there is to be training."""
    if options.model or not options.skip_training:
        return options.model
    if options.output is None:
        raise SystemExit("--skip-training needs the --model to evaluate, or its --output")
    return options.output / "model.safetensors"


def _previous(options: Any) -> dict[str, Any]:
    """The report of the run whose machine is evaluated once more."""
    if options.model or not options.skip_training:
        return {}
    file = options.output / "report.json"
    return json.loads(file.read_text()) if file.exists() else {}


def describe(options: Any) -> dict[str, Any]:
    """Where numbers come from."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or None
    except FileNotFoundError:
        commit = None
    return {
        "command": " ".join(sys.argv),
        "seed": options.seed,
        "commit": commit,
        "threads": torch.get_num_threads(),
    }


def write_report(options: Any, report: dict[str, Any], module: nn.DBM | None = None) -> None:
    """What there is so far: a run that dies in its evaluation keeps its machine."""
    if options.output is None:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    if module is not None:
        pyro_ebm.save(module, options.output / "model.safetensors")
    (options.output / "report.json").write_text(json.dumps(report, indent=1))


# --- training -------------------------------------------------------------------------------------


def train_dbm(train: Tensor, options: Any) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that is done, and what it cost."""
    config = training_config(options, seed=options.seed)
    costs: dict[str, Any] = {"start": options.start}
    module = nn.DBM(
        train.shape[1],
        options.hidden,
        centered=options.centered,
        weight_scale=options.weight_scale,
        seed=options.seed,
    )
    trainer = resumed_trainer(config, options.resume, module)
    if trainer is None:
        module.init_from_data(train)
        if options.start == "rbm":
            rbm, costs["rbm"] = lowest_machine(train, options)
            module.init_from_rbm(rbm, upper_scale=options.upper_scale, seed=options.seed)
        elif options.start == "pretrained":
            costs["greedy"] = train_greedily(module, train, options)
        trainer = Trainer(module, config)
    costs["joint"] = _fit(trainer, train)
    print(f"trained {config.num_epochs} epochs in {costs['joint']['wall_seconds']:.0f} s")
    return trainer, costs


def lowest_machine(train: Tensor, options: Any) -> tuple[nn.RBM, dict[str, Any]]:
    """The RBM that the lowest layer starts from, and what it cost."""
    if options.rbm:
        return pyro_ebm.load(options.rbm), {"file": str(options.rbm)}
    config = _config_of_rbms(options)
    module = nn.RBM(train.shape[1], options.hidden[0], centered=True, seed=options.seed)
    trainer = resumed_trainer(config, options.resume, module)
    if trainer is None:
        trainer = Trainer(module.init_from_data(train), config)
    costs = _fit(trainer, train)
    rbm = trainer.averaged
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        pyro_ebm.save(rbm, options.output / "rbm.safetensors")
    print(f"trained the RBM for {config.num_epochs} epochs in {costs['wall_seconds']:.0f} s")
    return rbm, costs


def train_greedily(module: nn.DBM, train: Tensor, options: Any) -> dict[str, Any]:
    """Put a module together from machines that are trained layer by layer; gives what they cost."""
    from pyro_ebm.training import pretrain

    config = _config_of_rbms(options)
    started = time.perf_counter(), time.process_time()
    stack = pretrain(module, train, config, method=options.method, resume=options.resume)
    costs = {
        "method": options.method,
        "options": config.to_dict(),
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
        "histories": list(stack.histories),
    }
    print(f"trained {len(stack.machines)} machines greedily in {costs['wall_seconds']:.0f} s")
    return costs


def _config_of_rbms(options: Any) -> TrainerConfig:
    """Options of the machines that come before the joint training."""
    settings = {"persistent": True, "binarize": True, "progress": options.progress}
    if options.checkpoint:
        settings["checkpoint"] = f"{options.checkpoint}.rbm"
    return TrainerConfig(**{**settings, **options.rbm_options}, seed=options.seed)


def _fit(trainer: Trainer, train: Tensor) -> dict[str, Any]:
    """Train; gives what it cost."""
    started = time.perf_counter(), time.process_time()
    history = trainer.fit(train)
    return {
        "options": trainer.config.to_dict(),
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
        "history": history,
    }
