# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The defects of Pyro in docs/upstream.md are there today. Where one of these tests fails Pyro has mended it:
take it out of the page."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyro
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "upstream.md"
_EXAMPLE = re.compile(
    r"^### (?P<title>.+?)\n\n(?:<!-- (?P<tag>\w+) -->\n\n)?```python\n(?P<code>.+?)```\n\n"
    r"(?:Prints `(?P<now>.+?)`|Never ends); expected (?P<expected>.+?)\.\n",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Example:
    """One section: its code, what it prints (None: it hangs), and what it needs, a word or nothing."""

    title: str
    code: str
    now: str | None
    expected: str
    tag: str | None


EXAMPLES = [
    Example(m["title"], m["code"], m["now"], m["expected"], m["tag"])
    for m in _EXAMPLE.finditer(PAGE.read_text(encoding="utf-8"))
]


def of_tag(*tags: str | None) -> pytest.MarkDecorator:
    chosen = [e for e in EXAMPLES if e.tag in tags]
    return pytest.mark.parametrize("example", chosen, ids=[e.title for e in chosen])


def run_here(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    return printed.getvalue().strip()


def test_every_section_is_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLES) == text.count("\n### ") == text.count("```python") == 14
    for example in EXAMPLES:
        lines = [line for line in example.code.splitlines() if line]
        assert len(lines) <= 20, example.title
        assert example.now != example.expected.strip("`"), example.title


@of_tag(None)
def test_shows_the_defect(example: Example) -> None:
    pyro.set_rng_seed(0)
    assert example.now is not None
    assert run_here(example.code).startswith(example.now)


@of_tag("arviz")
def test_shows_the_trap(example: Example) -> None:
    pytest.importorskip("arviz")
    if not version("arviz").startswith("0."):
        pytest.skip("ArviZ 1 has no from_pyro")
    assert run_here(example.code) == example.now


@pytest.mark.slow
@of_tag("processes")
def test_shows_the_defect_of_processes(example: Example) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", example.code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == example.now, done.stderr


@pytest.mark.slow
@of_tag("hangs")
def test_never_ends(example: Example) -> None:
    """Its processes are ended with it: a session of their own."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", example.code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
    finally:
        errors = _end(process)
    # It is not just slow: the workers' queues have given up.
    assert "requires_grad" in errors


def _end(process: subprocess.Popen[str]) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[1]
