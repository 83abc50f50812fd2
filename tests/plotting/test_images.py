# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of filters and reconstructions, films of chains: what they show, read back from the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pyro_ebm import nn, plotting
from pyro_ebm.distributions import BernoulliRBM

V, H, SHAPE = 12, 5, (3, 4)


def machine() -> BernoulliRBM:
    torch.manual_seed(1)
    return BernoulliRBM(
        torch.randn(V, H).double(), torch.randn(V).double(), torch.randn(H).double()
    )


def array(figure: Figure, panel: int = 0) -> Any:
    return np.ma.filled(np.ma.asarray(figure.axes[panel].images[0].get_array()), np.nan)


def tile(values: Any, row: int, column: int, shape: tuple[int, int]) -> Any:
    """The pixels of one tile of a canvas with lines of one pixel."""
    height, width = shape
    top, left = row * (height + 1) + 1, column * (width + 1) + 1
    return values[top : top + height, left : left + width]


class TestFilters:
    def weight(self) -> torch.Tensor:
        """Filter j is the number j + 1 everywhere, of alternating sign."""
        return torch.arange(1.0, 5.0).mul(torch.tensor([1.0, -1.0, 1.0, -1.0])).expand(V, 4)

    def test_order_of_the_units(self) -> None:
        values = array(plotting.filters(self.weight(), SHAPE, sort=None, num_columns=4))
        for j, value in enumerate((1.0, -2.0, 3.0, -4.0)):
            np.testing.assert_allclose(tile(values, 0, j, SHAPE), value)
        values = array(plotting.filters(self.weight(), SHAPE, num_columns=4))
        for j, value in enumerate((-4.0, 3.0, -2.0, 1.0)):
            np.testing.assert_allclose(tile(values, 0, j, SHAPE), value)

    def test_own_scale(self) -> None:
        weight = self.weight().clone()
        weight[:, 1] = 0.0
        figure = plotting.filters(weight, SHAPE, sort=None, scale="filter", num_columns=4)
        assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)
        for j, value in enumerate((1.0, 0.0, 1.0, -1.0)):
            np.testing.assert_allclose(tile(array(figure), 0, j, SHAPE), value)
        assert "largest" in figure.axes[1].get_ylabel()

    def test_grey_scale_is_symmetric(self) -> None:
        image = plotting.filters(self.weight(), SHAPE, colour_map="grey").axes[0].images[0]
        low, high = image.get_clim()
        assert low == -high and image.get_cmap().name == "gray"

    @pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
    def test_colours(self, layout: str) -> None:
        """A red filter is red above mid-grey in either layout, its negative is dark."""
        image = torch.zeros(2, 2, 3)
        image[..., 0] = 2.0
        if layout == "channels_first":
            image = image.movedim(-1, 0)
        weight = torch.stack([image.flatten(), -image.flatten()], 1)
        figure = plotting.filters(weight, image.shape, layout=layout, sort=None, num_columns=2)
        assert len(figure.axes) == 1 and "±2 nats" in figure._supxlabel.get_text()
        for j, red in enumerate((1.0, 0.0)):
            expected = np.broadcast_to([red, 0.5, 0.5], (2, 2, 3))
            np.testing.assert_allclose(tile(array(figure), 0, j, (2, 2)), expected)

    def test_deeper_layers_are_projected(self) -> None:
        first, second = torch.randn(V, 3), torch.randn(3, 2)
        figure = plotting.filters([first, second], SHAPE, sort=None, num_columns=2)
        limit = figure.axes[0].images[0].get_clim()[1]
        assert figure.axes[1].get_ylabel() == "product of weights"
        product = (first.double() @ second.double()).clamp(-limit, limit)
        for j in range(2):
            np.testing.assert_allclose(
                tile(array(figure), 0, j, SHAPE), product[:, j].reshape(SHAPE)
            )

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"sort": "size"}, "sort must be one of"),
            ({"scale": "own"}, "scale must be one of"),
            ({"colour_map": "jet"}, "colour_map must be one of"),
            ({"max_filters": 0}, "max_filters must be at least 1"),
            ({"num_columns": -1}, "num_columns must be at least 1"),
            ({"layout": "HWC"}, "layout must be one of"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            plotting.filters(self.weight(), SHAPE, **options)

    def test_weights(self) -> None:
        with pytest.raises(ValueError, match="cannot be multiplied"):
            plotting.filters([torch.zeros(V, 3), torch.zeros(2, 3)], SHAPE)
        with pytest.raises(ValueError, match="matrices of shape"):
            plotting.filters(torch.zeros(V), SHAPE)
        with pytest.raises(ValueError, match="NaN"):
            plotting.filters(torch.full((V, 2), torch.nan), SHAPE)
        with pytest.raises(ValueError, match="2 channels"):
            plotting.filters(torch.zeros(8, 2), (2, 2, 2))


class TestReconstructions:
    def test_means_and_errors(self, tmp_path: Path) -> None:
        rbm, rows = machine(), torch.bernoulli(torch.full((5, V), 0.5)).double()
        hidden = torch.sigmoid(rows @ rbm.weight + rbm.hidden.natural_bias)
        expected = torch.sigmoid(hidden @ rbm.weight.T + rbm.visible.natural_bias)
        figure = plotting.reconstructions(rbm, rows, SHAPE, num_columns=3)
        assert len(figure.axes) == 2
        for i in range(5):
            band, column = divmod(i, 3)
            values = array(figure, band)
            np.testing.assert_allclose(tile(values, 0, column, SHAPE), rows[i].reshape(SHAPE))
            np.testing.assert_allclose(tile(values, 1, column, SHAPE), expected[i].reshape(SHAPE))
            error = (rows[i] - expected[i]).square().mean().item()
            label = figure.axes[band].get_xticklabels()[column].get_text()
            assert float(label) == pytest.approx(error, abs=5e-5)
        total = (rows - expected).square().mean().item()
        assert f"5 rows {total:.4f}" in figure._supxlabel.get_text()
        # The images of a last row that is not full are as large as the others.
        assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
        plotting.save(figure, tmp_path / "a.png")

    def test_modules_and_bits(self) -> None:
        module = nn.RBM(V, H, seed=0)
        rows = torch.bernoulli(torch.full((2, V), 0.5)).bool()
        figure = plotting.reconstructions(module, rows, SHAPE)
        np.testing.assert_allclose(tile(array(figure), 0, 1, SHAPE), rows[1].reshape(SHAPE))

    def test_errors(self) -> None:
        rows = torch.zeros(2, V)
        with pytest.raises(TypeError, match=r"machine must be a pyro_ebm.distributions.RBM"):
            plotting.reconstructions(torch.nn.Linear, rows, SHAPE)
        with pytest.raises(ValueError, match="one machine, got a batch"):
            plotting.reconstructions(machine().expand((2,)), rows, SHAPE)
        with pytest.raises(ValueError, match=r"rows must have shape \(rows >= 1, 12\)"):
            plotting.reconstructions(machine(), rows[:, 1:], SHAPE)
        with pytest.raises(ValueError, match="rows holds NaN"):
            plotting.reconstructions(machine(), rows * torch.nan, SHAPE)
        with pytest.raises(TypeError, match="rows must be a tensor"):
            plotting.reconstructions(machine(), [[0.0] * V], SHAPE)
        with pytest.raises(ValueError, match="no rows of images"):
            plotting.reconstructions(machine(), rows, (2, 5))
        with pytest.raises(ValueError, match="num_columns"):
            plotting.reconstructions(machine(), rows, SHAPE, num_columns=0)


class TestFilm:
    def states(self) -> torch.Tensor:
        return torch.rand(4, 3, V)

    def test_frames(self) -> None:
        states = self.states()
        film = plotting.chain_animation(states, SHAPE, sweeps=[0, 5, 10], zoom=3, title="PCD")
        assert film.num_frames == 3
        for frame in (2, 0):
            film.draw(frame)
            for chain in range(4):
                shown = tile(array(film.figure), *divmod(chain, 2), SHAPE)
                np.testing.assert_allclose(shown, states[chain, frame].reshape(SHAPE), rtol=1e-6)
            assert film.figure.texts[0].get_text() == f"PCD, sweep {5 * frame}"

    def test_file(self, tmp_path: Path) -> None:
        """Read back: frames, size, and every pixel of the images as a whole block."""
        states = self.states().round()
        states[:, 1] = states[:, 0]  # no chain moves: the frame is still there
        film = plotting.chain_animation(states, SHAPE, zoom=10)
        path = plotting.save_animation(film, tmp_path / "new" / "a.gif", frames_per_second=4)
        assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
        with Image.open(path) as image:
            assert image.n_frames == 3 and image.info["loop"] == 0
            assert image.info["duration"] == 250
            width, height = 10 * (2 * 5 + 1), 10 * (2 * 4 + 1)
            assert image.size == (width, height + 26)
            for frame in range(3):
                image.seek(frame)
                grey = np.asarray(image.convert("L"), dtype=float)[26:] / 255.0
                blocks = grey.reshape(height // 10, 10, width // 10, 10)
                assert np.ptp(blocks, axis=(1, 3)).max() < 0.05
                for chain in range(4):
                    shown = tile(blocks.mean((1, 3)), *divmod(chain, 2), SHAPE)
                    np.testing.assert_allclose(
                        shown, states[chain, frame].reshape(SHAPE), atol=0.05
                    )

    def test_colour(self, tmp_path: Path) -> None:
        states = torch.zeros(1, 2, 12)
        states[0, :, :4] = 1.0
        film = plotting.chain_animation(states, (3, 2, 2))
        path = plotting.save_animation(film, tmp_path / "a.gif")
        with Image.open(path) as image:
            pixel = image.convert("RGB").getpixel((image.size[0] // 2 - 10, image.size[1] // 2))
        assert pixel[0] > 240 and max(pixel[1:]) < 15

    def test_write_is_atomic(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        film = plotting.chain_animation(self.states(), SHAPE)
        path = plotting.save_animation(film, tmp_path / "a.gif")
        before = path.read_bytes()

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(Figure, "savefig", broken)
        with pytest.raises(OSError, match="disk full"):
            plotting.save_animation(film, path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]

    def test_errors(self, tmp_path: Path) -> None:
        states = self.states()
        with pytest.raises(ValueError, match=r"shape \(chains, draws, V\)"):
            plotting.chain_animation(states[0], SHAPE)
        with pytest.raises(ValueError, match="NaN"):
            plotting.chain_animation(states * torch.nan, SHAPE)
        with pytest.raises(ValueError, match="sweeps has 2 numbers for 3 draws"):
            plotting.chain_animation(states, SHAPE, sweeps=[1, 2])
        with pytest.raises(ValueError, match="zoom"):
            plotting.chain_animation(states, SHAPE, zoom=0)
        with pytest.raises(ValueError, match="increasing pair"):
            plotting.chain_animation(states, SHAPE, limits=(1.0, 0.0))
        film = plotting.chain_animation(states, SHAPE)
        with pytest.raises(ValueError, match=r"must end in \.gif"):
            plotting.save_animation(film, tmp_path / "a.mp4")
        with pytest.raises(ValueError, match="frames_per_second"):
            plotting.save_animation(film, tmp_path / "a.gif", frames_per_second=0)


def test_layouts_of_grids() -> None:
    """The same colour image in both orders of its entries."""
    image = torch.rand(1, 2, 3, 3)
    last = array(plotting.image_grid(image.flatten(1), (2, 3, 3), layout="channels_last"))
    first = image.movedim(-1, 1)
    again = array(plotting.image_grid(first.flatten(1), (3, 2, 3)))
    np.testing.assert_array_equal(last, again)
    np.testing.assert_allclose(tile(last, 0, 0, (2, 3)), image[0])
    spins = plotting.image_grid(torch.tensor([[-1.0, 1.0]]), (1, 2), limits=(-1.0, 1.0))
    assert spins.axes[0].images[0].get_clim() == (-1.0, 1.0)


def test_unknown_pixels_of_colour_images_are_blue() -> None:
    rows, mask = torch.ones(1, 12), torch.arange(12) < 6
    figure = plotting.completions(
        rows, mask, rows, rows.expand(1, 1, 12), (2, 2, 3), layout="channels_last"
    )
    given = tile(array(figure), 1, 0, (2, 2))
    np.testing.assert_allclose(given[0], 1.0)
    np.testing.assert_allclose(given[1, 0], np.array([0x7E, 0xA6, 0xD3]) / 255.0)


def test_vector_files_keep_their_text(tmp_path: Path) -> None:
    figure = plotting.filters(torch.rand(V, 2), SHAPE, title="Words that stay words")
    assert "Words that stay words" in plotting.save(figure, tmp_path / "a.svg").read_text()
    assert b"/Subtype /Type0" in plotting.save(figure, tmp_path / "a.pdf").read_bytes()
