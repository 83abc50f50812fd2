# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documentation are made, and small enough for it."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = (
    "confusion_matrix",
    "embedding",
    "energy_histogram",
    "filters",
    "hidden_activations",
    "history",
    "learning_curves",
    "reconstructions",
)


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "gallery.py", "--smoke", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == list(NAMES)
    for name in NAMES:
        with Image.open(tmp_path / f"{name}.png") as picture:
            # Something is drawn: not all pixels are alike.
            assert picture.convert("L").getextrema() != (255, 255)
    with Image.open(tmp_path / "chains.gif") as film:
        assert film.n_frames == 5


def test_pictures_of_the_documentation() -> None:
    folder = ROOT / "docs" / "source" / "_static" / "pictures"
    page = (ROOT / "docs" / "source" / "howto" / "pictures.rst").read_text()
    for path in folder.iterdir():
        assert path.stat().st_size <= 150_000, path.name
        assert path.name in page, path.name
