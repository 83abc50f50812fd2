# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Tables for people, as text and as Markdown."""

import math
from collections.abc import Sequence

__all__ = ["decimals", "markdown_table", "significant", "text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of aligned columns, the first one to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def decimals(value: float | None, places: int) -> str:
    """A number with fixed decimals; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{places}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits and no exponent below a million."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value) or value == 0.0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}"
