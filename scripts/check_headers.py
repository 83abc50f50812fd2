# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Check that every Python file of the project starts with the licence header.

``python scripts/check_headers.py`` lists the files without it and fails if there are any;
``python scripts/check_headers.py --fix`` adds it to them.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pyro_ebm", "tests", "tests_arviz1", "benchmarks", "examples", "docs", "scripts")
HEADER = (
    "# Copyright Contributors to the pyro_ebm project.\n# SPDX-License-Identifier: Apache-2.0\n"
)


def python_files(root: Path = ROOT) -> Iterator[Path]:
    """The Python files of the project, in order of their paths."""
    yield from sorted(root.glob("*.py"))
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if "build" not in path.relative_to(root).parts:
                yield path


def split_shebang(text: str) -> tuple[str, str]:
    """The ``#!`` line of a script, if it has one, and the rest."""
    if not text.startswith("#!"):
        return "", text
    first, newline, rest = text.partition("\n")
    return first + newline, rest


def has_header(path: Path) -> bool:
    return split_shebang(path.read_text(encoding="utf-8"))[1].startswith(HEADER)


def add_header(path: Path) -> None:
    shebang, rest = split_shebang(path.read_text(encoding="utf-8"))
    # A module docstring follows directly, anything else after an empty line.
    gap = "\n" if rest and not rest.startswith(('"""', 'r"""', "\n")) else ""
    path.write_text(shebang + HEADER + gap + rest, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the licence headers.")
    parser.add_argument("--fix", action="store_true", help="add the missing headers")
    fix = parser.parse_args().fix
    missing = [path for path in python_files() if not has_header(path)]
    for path in missing:
        if fix:
            add_header(path)
        print(f"{path.relative_to(ROOT)}: {'added the' if fix else 'no'} licence header")
    return 1 if missing and not fix else 0


if __name__ == "__main__":
    sys.exit(main())
