# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Estimates as JSON files and as rows of tables."""

import json
import math
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_ebm.infer import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
    bracket_log_partition,
    estimate_log_partition,
    load_json,
    to_latex,
    to_markdown,
)
from pyro_ebm.infer.log_partition import table_rows
from pyro_ebm.infer.log_partition.serialization import (
    from_json,
    to_json,
    write_atomically,
    write_json,
)
from tests.distributions.families import random_rbm

NUMBERS = ("value", "std_error", "lower", "upper", "ess")


def run(**options: Any) -> LogPartitionEstimate:
    rbm = random_rbm(("bernoulli", "ising"), batched=options.pop("batched", False))
    return estimate_log_partition(rbm, num_chains=30, num_temperatures=10, seed=1, **options)


def plain(**options: Any) -> LogPartitionEstimate:
    settings = {"method": "bar", "seed": 3, "num_chains": 8}
    return LogPartitionEstimate.from_error(
        **{
            "value": 451.2734,
            "std_error": 0.1812,
            "settings": settings,
            "ess": None,
            "warn": False,
        }
        | options
    )


def bracket() -> LogPartitionBracket:
    rbm = random_rbm(("bernoulli", "ising"))
    return bracket_log_partition(rbm, num_chains=30, num_temperatures=10, seed=1)


def assert_same(a: LogPartitionEstimate, b: LogPartitionEstimate) -> None:
    for name in NUMBERS:
        assert torch.equal(getattr(a, name).nan_to_num(-1.0), getattr(b, name).nan_to_num(-1.0))
    assert (a.settings, a.flags, a.side) == (b.settings, b.flags, b.side)


class TestFiles:
    @pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
    def test_estimate(self, tmp_path: Path, batched: bool) -> None:
        estimate, path = run(batched=batched), tmp_path / "estimate.json"
        estimate.save_json(path)
        for read in (LogPartitionEstimate.load_json(path), load_json(path)):
            assert isinstance(read, LogPartitionEstimate) and read.log_weights is None
            assert_same(read, estimate)
        assert read.to_dict() == estimate.to_dict()

    def test_bracket(self, tmp_path: Path) -> None:
        both, path = bracket(), tmp_path / "bracket.json"
        both.save_json(path)
        for read in (LogPartitionBracket.load_json(path), load_json(path)):
            assert isinstance(read, LogPartitionBracket)
            assert_same(read.forward, both.forward)
            assert_same(read.reverse, both.reverse)
        assert read.to_dict() == both.to_dict()

    def test_numbers_that_json_lacks(self, tmp_path: Path) -> None:
        """A strict reader reads the file: no NaN, no Infinity as numbers."""
        estimate = plain(
            std_error=math.inf, flags=["doubtful"], settings={"method": "x", "a": math.nan}
        )
        path = tmp_path / "estimate.json"
        estimate.save_json(path)

        def refuse(word: str) -> Any:
            raise AssertionError(word)

        data = json.loads(path.read_text(), parse_constant=refuse)
        assert data["ess"] is None and data["std_error"] == "Infinity"
        assert data["lower"] == "-Infinity" and data["settings"]["a"] is None
        read = LogPartitionEstimate.load_json(path)
        assert read.ess.isnan() and read.std_error == math.inf and read.lower == -math.inf
        assert read.flags == ("doubtful",) and not read.reliable

    def test_tensors_round_trip(self) -> None:
        x = torch.tensor([[1.5, math.nan], [math.inf, -math.inf]], dtype=torch.float64)
        text = json.dumps(to_json(x), allow_nan=False)
        torch.testing.assert_close(from_json(json.loads(text)), x, equal_nan=True)

    def test_settings_that_json_lacks(self, tmp_path: Path) -> None:
        estimate = plain(settings={"method": "x", "path": object()})
        with pytest.raises(TypeError, match="JSON has no type for object"):
            estimate.save_json(tmp_path / "estimate.json")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is no JSON file"),
            ("[1]", "must hold a JSON object, got list"),
            ('{"value": 1.0}', r"an estimate of log Z needs \['std_error'"),
            ('{"forward": {}}', "a bracket of log Z needs forward and reverse"),
        ],
    )
    def test_files_of_others(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "file.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_json(path)

    def test_words_for_numbers(self) -> None:
        data = plain().to_dict() | {"value": "many"}
        with pytest.raises(ValueError, match="expected numbers, got 'many'"):
            LogPartitionEstimate.from_dict(data)


class TestAtomicWriting:
    def test_old_content_survives_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def fail(file: Any) -> None:
            file.write(b"ne")
            raise RuntimeError("disk full")

        with pytest.raises(RuntimeError, match="disk full"):
            write_atomically(path, fail)
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    def test_permissions_are_those_of_new_files(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        write_json(tmp_path / "file", {"a": 1})
        modes = {stat.S_IMODE(os.stat(p).st_mode) for p in tmp_path.iterdir()}
        assert len(modes) == 1


class TestMarkdown:
    def test_row_of_an_estimate(self) -> None:
        row = to_markdown(plain()).splitlines()[-1]
        assert row == (
            "| bar | 8 chains, seed 3 | 451.27 | 0.18 | 450.92 to 451.63 | 0.71 |  |  |  |"
        )

    def test_row_of_ais(self) -> None:
        row = table_rows(run())[0]
        assert row["method"] == "ais"
        assert row["settings"] == (
            "30 chains x 10 temperatures, schedule linear, base visible biases, seed 1"
        )
        assert float(row["seconds"]) >= 0.0 and float(row["ess"]) > 1.0

    def test_row_of_a_bracket(self) -> None:
        both = bracket()
        row = table_rows(both)[0]
        assert row["method"] == "ais / reverse-ais"
        assert row["value"] == f"{both.value.item():.{len(row['value'].split('.')[1])}f}"
        low, high = map(float, row["interval"].split(" to "))
        assert float(row["width"]) == pytest.approx(high - low, abs=0.011)
        assert len(row["std_error"].split(" / ")) == len(row["ess"].split(" / ")) == 2
        assert row["settings"] == (
            "30 chains x 10 temperatures, schedule linear, base visible biases, seed 1 / 2, start exact"
        )

    def test_a_batch_has_a_row_an_element(self) -> None:
        estimate = run(batched=True)
        rows = table_rows([estimate, plain()])
        assert [row["method"] for row in rows] == [
            *(f"ais [{i}, {k}]" for i in range(2) for k in range(3)),
            "bar",
        ]
        assert float(rows[4]["value"]) == pytest.approx(estimate.value[1, 1].item(), abs=0.01)

    def test_flags(self) -> None:
        row = table_rows(plain(flags=["few round trips", "a | b"]))[0]
        assert row["flags"] == "few round trips; a | b"
        assert r"a \| b" in to_markdown(plain(flags=["a | b"]))

    def test_crossed_brackets_are_flagged(self) -> None:
        low, high = plain(value=12.0, side="below"), plain(value=10.0, side="above")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            both = LogPartitionBracket(low, high)
        assert "above the upper bound" in table_rows(both)[0]["flags"]

    @pytest.mark.parametrize(
        ("std_error", "shown"),
        [(0.18123, "0.18"), (2.5, "2.50"), (0.00345, "0.0034"), (0.0, "0.00"), (1e-9, "0.000000")],
    )
    def test_digits_follow_the_error(self, std_error: float, shown: str) -> None:
        assert table_rows(plain(std_error=std_error))[0]["std_error"] == shown

    def test_several_seeds(self) -> None:
        settings = {"method": "ais", "seed": [1, 2], "num_chains": 8}
        assert table_rows(plain(settings=settings))[0]["settings"] == "8 chains, seeds 1, 2"

    @pytest.mark.parametrize("table", [to_markdown, to_latex, table_rows])
    def test_no_estimate(self, table: Any) -> None:
        with pytest.raises(TypeError, match="results must be estimates or brackets, got float"):
            table([plain(), 3.0])


class TestLatex:
    def test_is_booktabs(self) -> None:
        lines = to_latex([plain(), bracket()]).splitlines()
        assert lines[0] == r"\begin{tabular}{llrrrrrrl}" and lines[-1] == r"\end{tabular}"
        assert lines[1] == r"\toprule" and lines[3] == r"\midrule" and lines[-2] == r"\bottomrule"
        assert all(
            line.count("&") == 8 and line.endswith(r" \\") for line in (lines[2], *lines[4:6])
        )
        assert r"$\log Z$" in lines[2] and r"95\,\%" in lines[2]

    def test_special_characters_are_escaped(self) -> None:
        nasty = "100 % & $x_1$ #2 {~^} a\\b <c>"
        text = to_latex(plain(flags=[nasty])).splitlines()[-3]
        cell = text.split(" & ", 8)[-1].removesuffix(r" \\")
        assert not re.search(r"(?<!\\)[&%$#_]", cell)
        plain_again = cell
        for command, character in (
            (r"\textasciitilde{}", "~"),
            (r"\textasciicircum{}", "^"),
            (r"\textless{}", "<"),
            (r"\textgreater{}", ">"),
        ):
            plain_again = plain_again.replace(command, character)
        plain_again = re.sub(r"\\([&%$#_{}])", r"\1", plain_again)
        assert plain_again.replace(r"\textbackslash{}", "\\") == nasty
