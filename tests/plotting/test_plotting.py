# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyro_ebm import plotting


def drawn(figure: Figure, path: Path) -> Any:
    return imread(plotting.save(figure, path))


def shown(figure: Figure, panel: int = 0) -> Any:
    """The array of an image panel; lines between tiles are above the scale."""
    return np.asarray(figure.axes[panel].images[0].get_array())


def test_tiles_keep_pixels_and_order(tmp_path: Path) -> None:
    images = torch.arange(6).reshape(6, 1).expand(6, 6) / 10.0
    figure = plotting.image_grid(images, (2, 3), num_columns=4)
    array = shown(figure)
    assert array.shape == (2 * 3 + 1, 4 * 4 + 1)
    np.testing.assert_allclose(array[1:3, 5:8], 0.1)
    np.testing.assert_allclose(array[4:6, 1:4], 0.4)
    assert (array[0] > 1.0).all() and (array[3] > 1.0).all() and (array[:, 4] > 1.0).all()
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)
    assert drawn(figure, tmp_path / "grid.png").std() > 0.05


def test_lines_are_no_unknown_pixels(tmp_path: Path) -> None:
    pixels = drawn(plotting.image_grid(torch.zeros(4, 4), (2, 2)), tmp_path / "a.png")[..., :3]
    grey = (np.ptp(pixels, axis=-1) < 0.02).mean()
    assert grey > 0.99


def test_several_panels(tmp_path: Path) -> None:
    panels = {"data": torch.rand(9, 4), "model": torch.rand(9, 4)}
    figure = plotting.image_grid(panels, (2, 2), title="both", caption="what it is")
    assert [ax.get_title() for ax in figure.axes] == ["data", "model"]
    drawn(figure, tmp_path / "a.png")


def test_colour_images(tmp_path: Path) -> None:
    images = torch.zeros(1, 3 * 2 * 2)
    images[0, :4] = 1.0  # the red channel
    array = shown(plotting.image_grid(images, (3, 2, 2)))
    np.testing.assert_allclose(array[1:3, 1:3], np.broadcast_to([1.0, 0, 0], (2, 2, 3)))
    drawn(plotting.image_grid(images, (3, 2, 2)), tmp_path / "a.png")


@pytest.mark.parametrize(
    "images, shape, words",
    [
        (torch.zeros(3, 5), (2, 2), "no rows of images"),
        (torch.zeros(3, 4), (4,), "no rows of images"),
        (torch.zeros(0, 4), (2, 2), "no images"),
    ],
)
def test_bad_images(images: torch.Tensor, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.image_grid(images, shape)


def test_filters_are_symmetric_and_ordered(tmp_path: Path) -> None:
    weight = torch.zeros(4, 5, requires_grad=True)
    with torch.no_grad():
        weight[:, 3] = -2.0
        weight[:, 1] = 1.0
    figure = plotting.filters(weight, (2, 2), num_columns=5, max_filters=2)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high and high == pytest.approx(2.0)
    array = shown(figure)
    np.testing.assert_allclose(array[1:3, 1:3], -2.0)
    np.testing.assert_allclose(array[1:3, 4:6], 1.0)
    assert "the 2 of 5 units" in figure._supxlabel.get_text()
    drawn(figure, tmp_path / "a.png")
    drawn(plotting.filters(torch.zeros(4, 3), (2, 2)), tmp_path / "zero.png")
    drawn(plotting.filters(torch.rand(12, 3), (3, 2, 2)), tmp_path / "colour.png")


def test_energy_trace(tmp_path: Path) -> None:
    figure = plotting.energy_trace(
        torch.randn(3, 20), sweeps_per_draw=5, data_energies=torch.randn(50)
    )
    trace, density = figure.axes
    assert len(trace.get_lines()) == 3
    assert trace.get_lines()[0].get_xdata()[-1] == 100
    assert "nats" in trace.get_ylabel() and "sweeps" in trace.get_xlabel()
    assert density.get_legend() is not None
    drawn(figure, tmp_path / "a.png")
    drawn(plotting.energy_trace(np.zeros((2, 5))), tmp_path / "constant.png")
    with pytest.raises(ValueError, match="chains, draws"):
        plotting.energy_trace(torch.zeros(3))


def test_completions(tmp_path: Path) -> None:
    original = torch.rand(3, 4)
    mask = torch.tensor([True, True, False, False])
    figure = plotting.completions(original, mask, original, original.expand(2, 3, 4), (2, 2))
    array = np.ma.filled(np.ma.asarray(shown(figure)), np.nan)
    assert array.shape == (5 * 3 + 1, 3 * 3 + 1)
    np.testing.assert_allclose(array[4, 1:3], original[0, :2], rtol=1e-6)
    assert np.isnan(array[5, 1:3]).all()
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels == ["test image", "given", "mean", "sample 1", "sample 2"]
    assert not torch.isnan(original).any()
    drawn(figure, tmp_path / "a.png")


def test_history(tmp_path: Path) -> None:
    records = [
        {"epoch": i, "reconstruction_error": 1 / i, "free_energy_train": -i, "seconds": 1.0}
        for i in (1, 2, 3)
    ]
    figure = plotting.history(records)
    assert len(figure.axes) == 2
    drawn(figure, tmp_path / "a.png")
    drawn(plotting.history(records[:1]), tmp_path / "one.png")
    with pytest.raises(ValueError, match="no epochs"):
        plotting.history([])


def test_no_global_state(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    drawn(plotting.image_grid(torch.rand(4, 4), (2, 2)), tmp_path / "a.png")
    if before:
        import matplotlib.pyplot

        assert matplotlib.pyplot.get_fignums() == []
    else:
        assert "matplotlib.pyplot" not in sys.modules


def test_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "a.png"
    figure = plotting.image_grid(torch.rand(4, 4), (2, 2))
    plotting.save(figure, path)
    before = path.read_bytes()

    def broken(self: Figure, file: Any, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plotting.save(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-ebm\[plot\]'"):
        plotting.image_grid(torch.rand(4, 4), (2, 2))


def test_a_history_of_other_metrics_is_for_learning_curves():
    with pytest.raises(ValueError, match="learning_curves"):
        plotting.history([{"epoch": 1, "pseudo_log_likelihood": -1.0, "seconds": 1.0}])
