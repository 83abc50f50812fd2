# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Stages of the CIFAR-10 recipes: options, runs that go on where they were, reports."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cifar_data import Images, Preprocessing, load_images
from grbm_patches import set_rarity, write_report
from torch import Tensor

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training import Callback, Trainer, TrainerConfig

DTYPES = {"float16": torch.float16, "float32": torch.float32}


#: Options with which a run cannot be gone on with if they change.
DEFINING = (
    "seed",
    "validation",
    "num_train",
    "smoke",
    "smoke_size",
    "contrast",
    "dropped",
    "whiten",
    "regularization",
    "centered",
    "learn_precision",
    "noise_share",
    "hidden",
    "patch_hidden",
    "patch_rows",
    "augment",
    "top",
    "total_count",
    "tied",
)


class Unfinished(SystemExit):
    """A stage ran out of its time; the same command goes on with it."""


class Recipe(argparse.Action):
    """Options of a stage, ``KEY=VALUE`` with JSON values, on top of those of the recipe."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        changed = dict(getattr(namespace, self.dest))
        for text in values:
            key, found, value = text.partition("=")
            if not found:
                parser.error(f"{option_string}: expected KEY=VALUE, got {text!r}")
            try:
                changed[key] = json.loads(value)
            except json.JSONDecodeError:
                changed[key] = value
        setattr(namespace, self.dest, changed)


def make_parser(
    description: str, stages: Sequence[str], recipes: Mapping[str, Mapping[str, Any]]
) -> argparse.ArgumentParser:
    """Flags that both recipes have.

    :param str description: first line of help.
    :param stages: names in their order.
    :param recipes: options of training by stage.
    """
    parser = argparse.ArgumentParser(description=description)
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("--stage", nargs="+", choices=stages, default=list(stages), help="what to do; all of it")
    add("--output", type=Path, required=True, help="folder of machines, reports and pictures")
    add("--device", default="cpu", help="of the machines and the rows, such as cuda")
    add("--tf32", action=flag, default=False, help="matrix products of NVIDIA GPUs in TF32")
    add("--max-minutes", type=float, help="stop a stage then; the same command goes on with it")
    add("--fresh", action="store_true", help="start the stages anew, whatever there is")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="seconds, on synthetic images")
    add("--smoke-size", type=int, default=8, help="their width")
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--validation", type=int, default=1000, help="the last training images, held out")
    add("--num-train", type=int, default=0, help="only the first training images; 0 for all")
    add("--contrast", action=flag, default=True, help="every image with mean 0 and variance 1")
    add("--dropped", type=int, default=1000, help="directions of least variance left out")
    add("--whiten", action=flag, default=True, help="whiten; otherwise standardise every pixel")
    add("--regularization", type=float, default=0.1, help="of whitening, per variance of a pixel")
    add("--rows-dtype", choices=DTYPES, default="float32", help="of rows kept on the device")
    machine = parser.add_argument_group("machines")
    add = machine.add_argument
    add("--centered", action=flag, default=True)
    add("--learn-precision", action=flag, default=False, help="of the pixels")
    add(
        "--noise-share",
        type=float,
        default=0.25,
        help="variance of pixels given the hidden units at the start, per variance of the data",
    )
    add("--weight-scale", type=float, help="of its initial weights; that of Glorot if not given")
    add("--rarity", type=float, default=0.05, help="initial odds of a single hidden unit")
    add("--samples", type=int, default=64, help="tiles of a picture")
    add("--sweeps", type=int, default=1000, help="Gibbs sweeps of samples")
    training = parser.add_argument_group(
        "training: options of TrainerConfig by stage (finetune: of FineTuneConfig), such as "
        "--grbm num_epochs=10 learning_rate=0.001"
    )
    for name, recipe in recipes.items():
        text = ", ".join(f"{key}={json.dumps(value)}" for key, value in recipe.items())
        training.add_argument(
            f"--{name}",
            nargs="+",
            action=Recipe,
            default=dict(recipe),
            metavar="KEY=VALUE",
            help=text.replace("%", "%%"),
        )
    return parser


class Run:
    """What the stages of one command share."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.dtype = DTYPES[options.rows_dtype]
        self.folder: Path = options.output
        self.deadline = float("inf")
        if options.tf32:
            torch.set_float32_matmul_precision("high")

    @cached_property
    def images(self) -> Images:
        """The images, as bytes."""
        return load_images(self.options)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The map to rows, on the device."""
        return Preprocessing.load(self.needed("preprocessing")).to(self.device)

    def rows(self, split: str) -> Tensor:
        """Rows of a split, on the device."""
        return self.preprocessing(self.images.pixels[split], self.dtype)

    def file(self, name: str) -> Path:
        """Where something is kept."""
        return self.folder / f"{name}.safetensors"

    def needed(self, name: str) -> Path:
        """The same of what an earlier stage has made."""
        path = self.file(name)
        if not path.exists():
            raise SystemExit(f"{path} is not there: run the stage that makes it first")
        return path

    def load(self, name: str) -> Any:
        """A machine that an earlier stage has made."""
        return pyro_ebm.load(self.needed(name), device=self.device)

    def report(self, stage: str, **values: Any) -> None:
        """Add to the report of all stages."""
        path = self.folder / "report.json"
        everything = json.loads(path.read_text()) if path.exists() else {}
        everything[stage] = {**describe(self.options), **values}
        write_report(path, everything)

    def run(self, stages: Mapping[str, Callable[["Run"], None]]) -> None:
        """The stages that were asked for, each with its time."""
        for name, stage in stages.items():
            if name not in self.options.stage:
                continue
            started = time.perf_counter()
            minutes = self.options.max_minutes
            self.deadline = started + 60.0 * minutes if minutes else float("inf")
            stage(self)
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)

    # --- training ---------------------------------------------------------------------------------

    def train(
        self,
        name: str,
        make: Callable[[], Any],
        rows: Tensor,
        validation: Tensor | None,
        recipe: Mapping[str, Any],
        kind: type[Trainer] = Trainer,
        **fixed: Any,
    ) -> Trainer:
        """A machine trained from where it was; written with its checkpoint.

        :param str name: of its files.
        :param make: gives the machine at its start.
        :param rows: training rows.
        :param validation: rows for the metrics only.
        :param recipe: options of ``TrainerConfig``.
        :param kind: class of the trainer.
        :param fixed: options that follow from the machine; the recipe may name others.
        :raises Unfinished: if the time was over before the last epoch.
        """
        checkpoint = self.file(f"{name}.checkpoint")
        values = {"seed": self.options.seed, "checkpoint_every": 5, **fixed, **recipe}
        config = TrainerConfig(**values, checkpoint=str(checkpoint))
        if checkpoint.exists() and not self.options.fresh:
            self.check_same(name)
            changes = {**config.to_dict(), "seed": config.seed}
            trainer = kind.from_checkpoint(checkpoint, device=self.device, **changes)
        else:
            trainer = kind(make(), config)
            # Before the first checkpoint: a run that dies is resumed with the options that it had.
            self.report(name, epochs=0)
        started, before = time.perf_counter(), trainer.epoch
        history = trainer.fit(rows, validation, callbacks=[_Deadline(self.deadline)])
        seconds = time.perf_counter() - started
        machine = trainer.averaged
        tied = isinstance(machine, TiedRBM)
        pyro_ebm.save(machine.untied() if tied else machine, self.file(name))
        self.report(
            name,
            training=config.to_dict(),
            epochs=trainer.epoch,
            seconds_of_this_run=seconds,
            epochs_of_this_run=trainer.epoch - before,
            history=history,
        )
        last = {k: v for k, v in history[-1].items() if isinstance(v, float)} if history else {}
        shown = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
        print(f"{name}: {trainer.epoch} epochs, {seconds:.0f} s; {shown}", flush=True)
        if trainer.epoch < config.num_epochs:
            raise Unfinished(
                f"{name}: {trainer.epoch} of {config.num_epochs} epochs; go on with it"
            )
        return trainer

    def check_same(self, name: str, further: Sequence[str] = ()) -> None:
        """Refuse to go on with what was begun with other options.

        :param further: names of options that define it beside those of all machines.
        """
        path = self.folder / "report.json"
        everything = json.loads(path.read_text()) if path.exists() else {}
        before = everything.get(name, {}).get("options", {})
        now = json.loads(json.dumps(vars(self.options), default=str))
        changed = [
            k for k in (*DEFINING, *further) if k in before and k in now and before[k] != now[k]
        ]
        if changed:
            flags = ", ".join(f"--{k.replace('_', '-')} {before[k]}" for k in changed)
            raise SystemExit(
                f"{self.file(name)} was begun with {flags}: repeat these options, or take another "
                "--output or --fresh"
            )


class _Deadline(Callback):
    """Ends a run after the epoch in which a time is reached."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None:
        if time.perf_counter() >= self.deadline:
            trainer.stop()


def describe(options: Any) -> dict[str, Any]:
    """Options, commit and hardware of a stage."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        found = ""
    cuda = str(options.device).startswith("cuda")
    hardware = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    return {"options": vars(options), "commit": found or None, "hardware": hardware}


def gaussian_rbm(run: Run, rows: Tensor, num_hidden: int, seed: int) -> nn.RBM:
    """A Gaussian RBM at its start: pixels as in some rows but with less noise, so that hidden units have
    something to explain, and hidden units that are rarely on."""
    options = run.options
    rbm = nn.RBM(
        rows.shape[1],
        num_hidden,
        "gaussian",
        visible_options={"learn_precision": options.learn_precision},
        centered=options.centered,
        # The variance of Glorot's uniform weights, unless a scale is given.
        weight_scale=options.weight_scale or (2.0 / (rows.shape[1] + num_hidden)) ** 0.5,
        seed=seed,
        device=run.device,
    ).init_from_data(rows.float())
    precision = rbm.visible().parameters["precision"].detach()
    rbm.init_from_arrays(visible_precision=precision / options.noise_share)
    set_rarity(rbm, options.rarity)
    return rbm


@torch.no_grad()
def hidden_means(rbm: nn.RBM, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """E[h|v] of rows: features without random numbers, shape ``(rows, H)``."""
    dist = rbm().detach()
    means = torch.empty(len(rows), rbm.weight.shape[1], dtype=dtype, device=rows.device)
    for out, part in zip(means.split(4096), rows.split(4096), strict=True):
        out.copy_(dist.hidden.mean(dist.hidden_field(part.to(rbm.weight.dtype))))
    # Rounding to half precision may leave [0, 1].
    return means.clamp_(0.0, 1.0)
