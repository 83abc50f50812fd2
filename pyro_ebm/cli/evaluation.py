# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""log Z from both sides, and likelihoods with the errors of all that they rest on."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.cli.data import DataOptions
from pyro_ebm.cli.errors import collect_warnings
from pyro_ebm.cli.machines import Machine, even_means, lowest_weight, two_sided
from pyro_ebm.cli.run_folder import hardware, versions
from pyro_ebm.datasets import Dataset
from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.enumeration import enumerable_side
from pyro_ebm.infer import (
    bracket_log_partition,
    exact_log_partition,
    log_likelihood,
    pseudo_log_likelihood,
)

__all__ = ["BASES", "EXACT", "AISOptions", "describe_evaluation", "evaluate"]

BASES = ("means", "biases", "uniform")
EXACT = ("auto", "always", "never")
#: States of the smaller layer up to which log Z is also computed exactly: seconds.
_MAX_STATES = 2**20
#: Rows of the pseudo-likelihood, which costs as many passes as there are pixels.
_PSEUDO_ROWS = 1000
#: 97.5 % quantile of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class AISOptions:
    """How log Z is estimated, see :func:`pyro_ebm.infer.estimate_log_partition`."""

    num_chains: int = 100
    num_temperatures: int = 5000
    schedule: str = "linear"
    base: str = "means"
    exact: str = "auto"
    seed: int = 0


def evaluate(
    module: Machine,
    options: DataOptions,
    data: Dataset,
    ais: AISOptions,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a model.

    Likelihoods rest on the exact log Z where the smaller layer has at most 2^20 states, otherwise on
    the midpoint of the two estimates; their interval joins that of log Z and that of the mean over
    rows. Those of a deep machine are mean-field bounds, and the layers are its even and its odd ones.

    :param module: the model.
    :param DataOptions options: how grey levels become states.
    :param Dataset data: the data.
    :param AISOptions ais: how log Z is estimated.
    :returns: numbers and how they were obtained, JSON types only.
    """
    started = time.perf_counter()
    splits = {"train": options.rows(data, "train")}
    if options.validation:
        splits["validation"] = options.rows(data, "validation")
    splits["test"] = options.rows(data, "test")
    weight = lowest_weight(module)
    splits = {name: rows.to(weight) for name, rows in splits.items()}
    if len(weight) != splits["test"].shape[1]:
        raise ValueError(
            f"the model has {len(weight)} visible units, {options.name} images {splits['test'].shape[1]}"
        )
    dist = two_sided(module)
    with collect_warnings() as messages:
        bracket = bracket_log_partition(
            dist,
            seed=ais.seed,
            num_chains=ais.num_chains,
            num_temperatures=ais.num_temperatures,
            schedule=ais.schedule,
            base=_base(ais.base, module, splits["train"]),
            progress=progress,
        )
    exact = _exact(dist, ais.exact)
    log_z = {"bracket": bracket.to_dict(), "exact": exact}
    value = bracket.value.item() if exact is None else exact["value"]
    low = bracket.lower.item() if exact is None else value
    high = bracket.upper.item() if exact is None else value
    return {
        "log_partition": log_z,
        "log_likelihood": {
            name: _likelihood(module, rows, (value, low, high), "exact" if exact else "midpoint")
            for name, rows in splits.items()
        },
        "bound": "mean-field" if _is_deep(module) else None,
        "pseudo_log_likelihood": None if _is_deep(module) else _pseudo(dist, splits["test"]),
        "warnings": messages,
        "data": options.to_dict(),
        "settings": asdict(ais),
        "hardware": hardware(str(weight.device)),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _is_deep(module: Machine) -> bool:
    """Whether log-likelihoods are bounds."""
    return isinstance(module, nn.DBM) and module.depth > 1


def _base(name: str, module: Machine, train: Tensor) -> Tensor | str | None:
    if name == "means":
        return even_means(module, train)
    return "uniform" if name == "uniform" else None


def _exact(dist: RBM, when: str) -> dict[str, Any] | None:
    side = enumerable_side(dist)
    num_states = None if side is None else side.visible.num_states
    if when == "never" or (when == "auto" and (num_states or _MAX_STATES + 1) > _MAX_STATES):
        return None
    started = time.perf_counter()
    with torch.no_grad():
        value = exact_log_partition(dist).item()
    seconds = round(time.perf_counter() - started, 3)
    return {"value": value, "num_states": num_states, "seconds": seconds}


def _likelihood(
    module: Machine, rows: Tensor, log_z: tuple[float, float, float], source: str
) -> dict[str, Any]:
    """Mean log-likelihood per row, or its bound; a higher log Z means a lower likelihood."""
    unnormalized = log_likelihood(module(), rows, 0.0)
    mean = unnormalized.mean().item()
    error = unnormalized.std().item() / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
    value, low, high = log_z
    return {
        "value": mean - value,
        "lower": mean - high - _Z * error,
        "upper": mean - low + _Z * error,
        "lower_from_log_partition": mean - high,
        "upper_from_log_partition": mean - low,
        "std_error_of_rows": error,
        "rows": len(rows),
        "log_partition": source,
    }


def _pseudo(dist: RBM, rows: Tensor) -> dict[str, Any] | None:
    rows = rows[:_PSEUDO_ROWS]
    if dist.visible.num_states is None:
        return None
    values = pseudo_log_likelihood(dist, rows).double()
    error = values.std().item() / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
    return {"value": values.mean().item(), "std_error_of_rows": error, "rows": len(rows)}


def describe_evaluation(result: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    bracket, exact = result["log_partition"]["bracket"], result["log_partition"]["exact"]
    lines = []
    for side, words in (("forward", "from below"), ("reverse", "from above")):
        s = bracket[side]
        lines.append(
            f"log Z {words}   {s['value']:10.3f} +- {s['std_error']:.3f}   "
            f"(95 %: {s['lower']:.3f} to {s['upper']:.3f}; ESS {s['ess']:.0f} of "
            f"{s['settings']['num_chains']})"
        )
    if exact is not None:
        lines.append(f"log Z exact        {exact['value']:10.3f}   ({exact['num_states']} states)")
    # Evaluations of before there were deep machines have none.
    bound = result.get("bound")
    for name, s in result["log_likelihood"].items():
        lines.append(
            f"log p({name}){' ' * (11 - len(name))} {s['value']:11.3f}   "
            f"(95 %: {s['lower']:.3f} to {s['upper']:.3f}) nats per image, {s['rows']} images;\n"
            f"{'':20}log Z alone: {s['lower_from_log_partition']:.3f} to "
            f"{s['upper_from_log_partition']:.3f}, standard error over images "
            f"{s['std_error_of_rows']:.3f}"
        )
    pseudo = result["pseudo_log_likelihood"]
    if pseudo is not None:
        lines.append(
            f"pseudo-log p(test) {pseudo['value']:10.3f} +- {pseudo['std_error_of_rows']:.3f}   "
            f"nats per image, {pseudo['rows']} images"
        )
    if bound is not None:
        lines.append(
            "Likelihoods of a deep machine are mean-field bounds: log p is higher, if log Z is right."
        )
    if exact is None:
        lines.append(
            "AIS bounds log Z from below, so its likelihoods are optimistic; reverse AIS bounds\n"
            "it from the other side. Likelihoods use the midpoint."
        )
    return "\n".join(lines)
