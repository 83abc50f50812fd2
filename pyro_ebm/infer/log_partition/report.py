# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of log Z as files and as rows of a paper's table."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ebm.infer.log_partition.bracket import LogPartitionBracket
from pyro_ebm.infer.log_partition.estimate import COUNTS, LogPartitionEstimate
from pyro_ebm.infer.log_partition.serialization import read_json

__all__ = ["load_json", "table_rows", "to_latex", "to_markdown"]

Result = LogPartitionEstimate | LogPartitionBracket

#: Settings with columns of their own, results, and defaults that need no word in a table.
_UNNAMED = {
    "method",
    "seconds",
    "dtype",
    "device",
    "forward",
    "reverse",
    "bracket",
}

_HEADERS = {
    "method": "method",
    "settings": "settings",
    "value": "log Z",
    "std_error": "± s.e.",
    "interval": "95 % interval",
    "width": "width",
    "ess": "ESS",
    "seconds": "time (s)",
    "flags": "flags",
}
_LATEX_HEADERS = _HEADERS | {
    "value": r"$\log Z$",
    "std_error": r"$\pm$ s.e.",
    "interval": r"95\,\% interval",
}
#: Columns of words stand at the left, numbers at the right.
_WORDS = ("method", "settings", "flags")

_LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
    }
)


def load_json(path: str | Path) -> Result:
    """Read an estimate or a bracket that its ``save_json`` wrote.

    :raises ValueError: if the file holds neither.
    """
    data = read_json(path)
    kind = LogPartitionBracket if "forward" in data else LogPartitionEstimate
    return kind.from_dict(data)


def table_rows(results: Result | Iterable[Result]) -> list[dict[str, str]]:
    """The cells of a table, by column: ``method, settings, value, std_error, interval, width, ess,
    seconds, flags``.

    A batch has one row an element, with its index behind the method. A bracket has one row: the
    midpoint of its sides as the value, both sides' numbers where they differ in kind (from below first),
    and the interval that holds both.

    :param results: estimates and brackets.
    :raises TypeError: if one is neither.
    """
    single = isinstance(results, LogPartitionEstimate | LogPartitionBracket)
    listed: list[Any] = [results] if single else list(results)  # type: ignore[arg-type]
    rows = []
    for result in listed:
        if not isinstance(result, LogPartitionEstimate | LogPartitionBracket):
            raise TypeError(f"results must be estimates or brackets, got {type(result).__name__}")
        for index in product(*map(range, result.value.shape)):
            row = _row(result[index] if index else result)
            row["method"] += f" {list(index)}" if index else ""
            rows.append(row)
    return rows


def to_markdown(results: Result | Iterable[Result]) -> str:
    """A Markdown table of estimates, see :func:`table_rows`.

    >>> estimate = LogPartitionEstimate.from_error(
    ...     451.27, 0.18, {"method": "ais", "num_chains": 100, "seed": 1}, ess=24.0
    ... )
    >>> print(to_markdown([estimate]))
    | method | settings | log Z | ± s.e. | 95 % interval | width | ESS | time (s) | flags |
    |:--|:--|--:|--:|--:|--:|--:|--:|:--|
    | ais | 100 chains, seed 1 | 451.27 | 0.18 | 450.92 to 451.62 | 0.71 | 24.0 |  |  |
    """
    rule = [":--" if name in _WORDS else "--:" for name in _HEADERS]
    lines = [list(_HEADERS.values()), rule]
    text = ["| " + " | ".join(lines[0]) + " |", "|" + "|".join(lines[1]) + "|"]
    for row in table_rows(results):
        cells = (row[name].replace("|", r"\|").replace("\n", " ") for name in _HEADERS)
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def to_latex(results: Result | Iterable[Result]) -> str:
    r"""A LaTeX ``tabular`` of estimates, see :func:`table_rows`, for ``\usepackage{booktabs}``."""
    columns = "".join("l" if name in _WORDS else "r" for name in _HEADERS)
    text = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_line(_LATEX_HEADERS.values())]
    text.append(r"\midrule")
    for row in table_rows(results):
        text.append(_latex_line(row[name].translate(_LATEX_ESCAPES) for name in _HEADERS))
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _row(result: Result) -> dict[str, str]:
    if isinstance(result, LogPartitionEstimate):
        sides: Sequence[LogPartitionEstimate] = (result,)
        width = result.upper - result.lower
    else:
        sides, width = (result.forward, result.reverse), result.width
    digits = _digits([side.std_error for side in sides])
    times = [side.settings["seconds"] for side in sides if "seconds" in side.settings]
    return {
        "method": _joined(str(side.settings["method"]) for side in sides),
        "settings": _settings([side.settings for side in sides]),
        "value": _number(result.value, digits),
        "std_error": " / ".join(_number(side.std_error, digits) for side in sides),
        "interval": f"{_number(result.lower, digits)} to {_number(result.upper, digits)}",
        "width": _number(width, digits),
        "ess": " / ".join(_number(side.ess, 1) for side in sides),
        "seconds": f"{sum(times):.3g}" if times else "",
        "flags": "; ".join(result.flags),
    }


def _joined(words: Iterable[str]) -> str:
    """Both sides' words, once if they are the same."""
    return " / ".join(dict.fromkeys(words))


def _number(value: Tensor, digits: int) -> str:
    number = value.item()
    return "" if math.isnan(number) else f"{number:.{digits}f}"


def _digits(errors: Sequence[Tensor]) -> int:
    """Decimals that show two digits of the smallest standard error, two at least and six at most."""
    positive = [e.item() for e in errors if 0.0 < e.item() < math.inf]
    smallest = min(positive, default=1.0)
    return min(6, max(2, 1 - math.floor(math.log10(smallest))))


def _settings(sides: Sequence[dict[str, Any]]) -> str:
    """The settings in a few words, counts first, and both sides' values where they differ."""
    counts = [
        f"{_joined(str(side[name]) for side in sides if name in side)} {word}"
        for name, word in COUNTS.items()
        if any(name in side for side in sides)
    ]
    words = [" x ".join(counts)] if counts else []
    names = dict.fromkeys(name for side in sides for name in side)
    for name in names:
        values = [side[name] for side in sides if side.get(name) is not None]
        if name in COUNTS or name in _UNNAMED or not values or isinstance(values[0], dict):
            continue
        several = name == "seed" and isinstance(values[0], list | tuple)
        label = "seeds" if several else name.replace("_", " ")
        words.append(f"{label} {_joined(map(_shown, values))}")
    return ", ".join(words)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
