# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm info``."""

from typing import Any

import click
import torch

from pyro_ebm import nn
from pyro_ebm.cli.commands.common import open_model
from pyro_ebm.cli.errors import Command
from pyro_ebm.cli.evaluation import describe_evaluation
from pyro_ebm.cli.machines import Machine
from pyro_ebm.cli.run_folder import RunFolder
from pyro_ebm.training.weights import weights_of

__all__ = ["info_command"]


@click.command("info", cls=Command)
@click.argument("model", type=click.Path())
def info_command(model: str) -> None:
    """Describe a model: sizes, families, how it was trained, how good it is.

    MODEL is a run folder or a .safetensors file.
    """
    module, run = open_model(model)
    for name, value in _model_lines(module).items():
        click.echo(f"{name:12} {value}")
    if run is None:
        return
    if run.is_run:
        for name, value in _run_lines(run).items():
            click.echo(f"{name:12} {value}")
    if run.file("evaluation.json").is_file():
        click.echo(describe_evaluation(run.read_json("evaluation.json")))
    else:
        click.echo(f"not evaluated yet: pyro-ebm evaluate {run}")


def _model_lines(module: Machine) -> dict[str, Any]:
    config = module.config()
    sides = {"visible": f"{config['num_visible']} {config['visible']} units"}
    sizes, families = config["num_hidden"], config["hidden"]
    if isinstance(module, nn.DBM):
        layers = zip(sizes, families, strict=True)
        sides["hidden"] = ", ".join(f"{size} {family}" for size, family in layers) + " units"
    else:
        sides["hidden"] = f"{sizes} {families} units"
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    weights = weights_of(module)
    norm = torch.stack([weight.detach().norm() for weight in weights]).norm().item()
    dtype = str(weights[0].dtype).removeprefix("torch.")
    return {
        "class": f"{type(module).__name__}, {'centred' if config['centered'] else 'not centred'}",
        **sides,
        "parameters": f"{count:,} learnable, {dtype}, weight norm {norm:.3f}",
    }


def _run_lines(run: RunFolder) -> dict[str, Any]:
    config = run.config()
    data, training = config["data"], config["training"]
    history = run.read_json("history.json") if run.file("history.json").is_file() else []
    kind = "PCD" if training["persistent"] else "CD"
    lines: dict[str, Any] = {
        "data": f"{data['name']}, binarization {data['binarization']}, "
        f"{data['validation']} held out for validation",
        "training": f"{kind}-{training['num_steps']}, {training['optimizer']}, learning rate "
        f"{training['learning_rate']} ({training['learning_rate_schedule']}), batches of "
        f"{training['batch_size']}, seed {training['seed']}",
        "epochs": f"{len(history)} of {training['num_epochs']}",
        "versions": ", ".join(f"{name} {value}" for name, value in config["versions"].items()),
    }
    if history:
        metrics = {k: v for k, v in history[-1].items() if k not in ("epoch", "seconds")}
        lines["metrics"] = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return lines
