# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Rules of the project: which way imports go, what an import costs, headers, sizes, the version."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_ebm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyro_ebm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which parts of pyro_ebm each part may import, beside itself:
# ops <- distributions <- {nn, infer} <- training
LAYERS = {
    "ops": set(),
    "distributions": {"ops"},
    "nn": {"ops", "distributions"},
    "infer": {"ops", "distributions"},
    "training": {"ops", "distributions", "nn", "infer", "diagnostics", "distances"},
    "diagnostics": {"ops", "distributions", "infer"},
    "distances": {"ops", "distributions", "infer"},
    "predictive": {"ops", "distributions", "infer", "diagnostics", "distances"},
}
# Loaded by their paths where there is no torch, so they stand alone: numpy, and ArviZ in functions.
STANDALONE = [
    PACKAGE / "diagnostics" / f"{name}.py" for name in ("convergence", "held_out", "inference_data")
]
# The top. No other part may import them.
TOP = {"cli", "estimators", "__main__"}
# Beside the standard library; the upper parts import what their extras install.
# tqdm comes with Pyro; safetensors is imported only when a file is read or written.
THIRD_PARTY = {
    "ops": {"numpy", "pyro", "torch"},
    "distributions": {"numpy", "pyro", "torch"},
    "nn": {"numpy", "pyro", "torch", "safetensors"},
    "infer": {"numpy", "pyro", "torch", "tqdm"},
}
# What `import pyro_ebm` must not load.
LAZY = {
    "arviz",
    "click",
    "matplotlib",
    "pandas",
    "pooch",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "xarray",
}


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: ``ops``, ``cli``, or ``__init__``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports at any depth, those in functions too, but those for type checkers only."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and is_type_checking(child):
            for statement in child.orelse:
                yield from import_nodes(ast.Module([statement], []))
        else:
            yield from import_nodes(child)


def imported_modules(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """``(line, absolute module)`` for every import of a file; ``from a import b`` gives ``a.b``."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        else:
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def layering_errors(part: str, modules: Iterator[tuple[int, str]]) -> Iterator[str]:
    """What is wrong with the imports of a file that belongs to ``part``."""
    for line, module in modules:
        top, *rest = module.split(".")
        if top == "pyro_ebm":
            # `from pyro_ebm import RBM` imports the whole package, so it counts as its __init__.
            target = rest[0] if rest else "__init__"
            if not (PACKAGE / target).is_dir() and not (PACKAGE / f"{target}.py").is_file():
                target = "__init__"
            if target == part:
                continue
            if part in LAYERS and target not in LAYERS[part]:
                yield f"line {line}: {part} imports {module}"
            elif part not in TOP and target in TOP:
                yield f"line {line}: {part} imports {module}, which is above it"
        elif part in THIRD_PARTY and top not in sys.stdlib_module_names | THIRD_PARTY[part]:
            yield f"line {line}: {part} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert list(layering_errors(part_of(path), imported_modules(path))) == []


@pytest.mark.parametrize(
    "file, source, allowed",
    [
        ("ops/a.py", "import math, torch\nimport numpy.random", True),
        ("ops/a.py", "from pyro_ebm import distributions", False),
        ("distributions/a.py", "from pyro_ebm.ops import numerics\nfrom ..ops import random", True),
        ("distributions/a.py", "from . import units\nfrom .units import Bernoulli", True),
        ("distributions/a.py", "def f():\n    from ..infer import AIS", False),
        ("distributions/a.py", "import arviz", False),
        ("nn/a.py", "from ..infer.mcmc import gibbs", False),
        ("infer/a.py", "import pyro_ebm.nn", False),
        ("infer/a.py", "from pyro_ebm import RBM", False),
        (
            "infer/mcmc/a.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from ...nn import RBM",
            True,
        ),
        ("infer/mcmc/a.py", "from ...distributions import RBM\nfrom ..mean_field import f", True),
        ("training/a.py", "from .. import nn, infer\nimport safetensors", True),
        ("training/a.py", "from ..cli import main", False),
        ("plotting.py", "from .cli import main", False),
        ("plotting.py", "import matplotlib\nfrom .nn import RBM", True),
        ("cli.py", "import click\nfrom .training import Trainer\nfrom . import estimators", True),
    ],
)
def test_layering_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str, allowed: bool
) -> None:
    package = tmp_path / "pyro_ebm"
    for part in ("ops", "distributions", "nn", "infer", "training"):
        (package / part).mkdir(parents=True)
    for module in ("cli", "estimators", "plotting"):
        (package / f"{module}.py").touch()
    path = package / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    monkeypatch.setitem(globals(), "PACKAGE", package)
    errors = list(layering_errors(part_of(path), imported_modules(path, tmp_path)))
    assert (errors == []) == allowed, errors


@pytest.mark.parametrize("path", STANDALONE, ids=lambda path: path.name)
def test_standalone_files(path: Path) -> None:
    modules = {module.split(".")[0] for _, module in imported_modules(path)}
    third = modules - set(sys.stdlib_module_names)
    # What ArviZ itself stands on.
    assert {"arviz", "numpy"} <= third <= {"arviz", "arviz_stats", "numpy", "pandas", "xarray"}


def test_import_is_light() -> None:
    code = "import json, sys, pyro_ebm; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {module.split(".")[0] for module in json.loads(result.stdout)}
    assert {"pyro_ebm", "torch", "pyro", "numpy"} <= loaded
    assert loaded & LAZY == set()


def test_headers() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_headers.py"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_version() -> None:
    """The version stands once, as a literal that the build reads without importing torch."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pyro_ebm.__version__"}
    literals = [
        ast.literal_eval(node.value)
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literals == [pyro_ebm.__version__]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pyro_ebm.__version__}\n" in citation


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: split it"
