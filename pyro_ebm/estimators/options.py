# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Arguments of an estimator as options of a training run."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from pyro_ebm.training import TrainerConfig

__all__ = ["TRAINER_OPTIONS", "plain", "trainer_config"]

#: The option of :class:`~pyro_ebm.training.TrainerConfig` that an argument is.
TRAINER_OPTIONS = {
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
    "n_iter": "num_epochs",
    "n_steps": "num_steps",
    "persistent": "persistent",
    "n_chains": "num_chains",
    "optimizer": "optimizer",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "averaging": "averaging",
    "binarize": "binarize",
    "objective": "objective",
    "generative_weight": "generative_weight",
}
#: Options that arguments of other names stand for.
_OWN = {"seed": "random_state", "progress": "verbose"}


def trainer_config(arguments: Mapping[str, Any], seed: int) -> TrainerConfig:
    """The options of a run.

    :param arguments: those of the estimator (``get_params``).
    :param int seed: seed of the run.
    :raises TypeError: if ``trainer_options`` is no dictionary.
    :raises ValueError: for an impossible value, unknown options, or options that are arguments.
    """
    own = {option: name for name, option in TRAINER_OPTIONS.items() if name in arguments} | _OWN
    values = {option: plain(arguments[name]) for option, name in own.items() if option != "seed"}
    values |= {"seed": seed, "progress": bool(values["progress"])}
    try:
        return TrainerConfig(**values, **_more(arguments["trainer_options"], own))
    except ValueError as error:
        raise ValueError(_in_own_words(str(error), own)) from error


def _more(options: Any, own: Mapping[str, str]) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"trainer_options must be a dictionary or None, got {options!r}")
    known = {field.name for field in fields(TrainerConfig)}
    for name in options:
        if name in own:
            raise ValueError(f"trainer_options has {name!r}: give the argument {own[name]} instead")
        if name not in known:
            raise ValueError(
                f"trainer_options has the unknown name {name!r}; known: {sorted(known - set(own))}"
            )
    return {name: plain(value) for name, value in options.items()}


def _in_own_words(message: str, own: Mapping[str, str]) -> str:
    """A message of the trainer's with the names that the estimator has."""
    return re.sub(r"\bnum_\w+", lambda match: own.get(match[0], match[0]), message)


def plain(value: Any) -> Any:
    """A number of numpy, as searches over parameters make them, as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
