# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import math

import pytest

from pyro_ebm.diagnostics.tables import decimals, markdown_table, significant, text_table


def test_text() -> None:
    text = text_table(["", "mean"], [["energy", "1.0"], ["v", "-10.25"]])
    assert text.splitlines() == ["          mean", "energy     1.0", "v       -10.25"]


def test_markdown() -> None:
    text = markdown_table(["", "mean"], [["energy", "1.0"]])
    assert text.splitlines() == ["|  | mean |", "| --- | ---: |", "| energy | 1.0 |"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123.456, "123"),
        (0.0123456, "0.0123"),
        (99999.9, "100000"),
        (1.23e7, "1.23e+07"),
        (1.2e-6, "1.2e-06"),
        (0.0, "0"),
        (-1.5, "-1.50"),
        (math.inf, "inf"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_decimals() -> None:
    assert [decimals(x, 2) for x in (1.234, math.nan, None, math.inf)] == ["1.23", "-", "-", "inf"]
