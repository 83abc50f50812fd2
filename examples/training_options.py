# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A flag for every option of :class:`pyro_ebm.training.TrainerConfig`: what the examples share."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyro_ebm.training import Trainer, TrainerConfig

_NAMES = tuple(f.name for f in fields(TrainerConfig))
#: Flags that examples define in their own way.
_OTHER = {"seed"}


def add_training_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add ``--learning-rate``, ``--num-steps`` and so on; values are JSON where they are no words.

    :param parser: what receives the flags.
    :param defaults: values of options that differ from those of ``TrainerConfig``.
    """
    standard = TrainerConfig()
    group = parser.add_argument_group("training (options of TrainerConfig; lists are per epoch)")
    for name in _NAMES:
        if name in _OTHER:
            continue
        default = defaults.get(name, getattr(standard, name))
        flag = "--" + name.replace("_", "-")
        help_text = f"default {default!r}"
        if isinstance(default, bool):
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=help_text
            )
        else:
            group.add_argument(flag, type=_value, default=default, metavar="X", help=help_text)


def training_config(arguments: argparse.Namespace, **overrides: Any) -> TrainerConfig:
    """The options that were given, and the seed.

    :param arguments: what the parser returned.
    :param overrides: options that the program decides.
    """
    values = {name: getattr(arguments, name) for name in _NAMES if hasattr(arguments, name)}
    return TrainerConfig(**{**values, **overrides})


def resumed_trainer(config: TrainerConfig, resume: bool, module: Any) -> Trainer | None:
    """The run of a checkpoint that is to go on, with the options that are given now; None if there is none.

    :param TrainerConfig config: the options.
    :param bool resume: whether a run is to go on.
    :param module: what would be trained otherwise: the run must be one of such a module.
    """
    if not resume:
        return None
    if config.checkpoint is None:
        raise SystemExit("--resume needs the --checkpoint to go on from")
    if not Path(config.checkpoint).exists():
        return None
    trainer = Trainer.from_checkpoint(config.checkpoint, **config.to_dict())
    found, wanted = trainer.module.config(), module.config()
    changed = {name: found[name] for name in wanted if found[name] != wanted[name]}
    if changed:
        raise SystemExit(f"{config.checkpoint} was begun with {changed}: repeat these options")
    return trainer


def _value(text: str) -> Any:
    """A number, list, dictionary, true, false or null of JSON; a word otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
