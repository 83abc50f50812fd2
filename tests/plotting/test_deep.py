# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of deep machines: what they show, read back from the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_ebm import nn, plotting
from pyro_ebm.distributions import DBM

SHAPE = (3, 4)


def module(hidden: tuple[int, ...] = (5, 3)) -> nn.DBM:
    return nn.DBM(12, list(hidden), centered=True, weight_scale=1.0, seed=0, dtype=torch.float64)


def array(figure: Any, panel: int) -> Any:
    return np.ma.filled(np.ma.asarray(figure.axes[panel].images[0].get_array()), np.nan)


def test_filters_of_layers_are_products() -> None:
    dbm = module((5, 3, 2))
    figure = plotting.layer_filters(dbm, SHAPE, num_columns=5, max_filters=4)
    w1, w2, w3 = (w.detach() for w in dbm.weights)
    for panel, (product, count) in enumerate(((w1, 4), (w1 @ w2, 3), (w1 @ w2 @ w3, 2))):
        values, ax = array(figure, panel), figure.axes[panel]
        order = product.norm(dim=0).argsort(descending=True)
        limit = ax.images[0].get_clim()[1]
        for i in range(count):
            got = values[1:4, 5 * i + 1 : 5 * i + 5]
            expected = product[:, order[i]].reshape(SHAPE).clamp(-limit, limit)
            np.testing.assert_allclose(got, expected.numpy(), atol=1e-12)
        size = product.shape[1]
        words = f"{count} of {size} units" if count < size else f"{size} units"
        assert ax.get_title() == f"layer {panel + 1}: {words}, ±{limit:.2g}"
        # Only the outermost weights may saturate.
        assert 0.9 < limit / product[:, order[:count]].abs().max() <= 1.0
    assert len(figure.axes) == 3


def test_particles_move_as_the_machine_does(tmp_path: Path) -> None:
    """Strong couplings to a single hidden unit leave one sweep no choice: all pixels are as it is."""
    dbm = module((1, 1))
    with torch.no_grad():
        dbm.weights[0].fill_(60.0)
        dbm.weights[1].zero_()
        for offset in dbm.offsets:
            offset.fill_(0.5)
        for layer in dbm.layers:
            layer.bias.zero_()
    particles = torch.zeros(4, 13)
    particles[1::2] = 1.0
    film = plotting.particle_animation(dbm, particles, SHAPE, num_frames=3, sweeps_per_frame=2)
    for frame in range(3):
        film.draw(frame)
        values = np.ma.filled(np.ma.asarray(film.figure.axes[0].images[0].get_array()), np.nan)
        for i in range(4):
            row, column = divmod(i, 2)
            got = values[4 * row + 1 : 4 * row + 4, 5 * column + 1 : 5 * column + 5]
            np.testing.assert_allclose(got, float(i % 2), atol=1e-9)
        assert film.figure.texts[0].get_text() == f"sweep {2 * frame}"
    plotting.save_animation(film, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == 3


def test_particles_have_the_law_of_the_machine() -> None:
    """After sweeps from anywhere the mean of the pixels is that of the machine, within 6 standard errors."""
    dbm = nn.DBM(4, [3, 2], weight_scale=0.8, seed=1, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    film = plotting.particle_animation(
        dbm, torch.zeros(4000, 6), (2, 2), num_frames=2, sweeps_per_frame=20, generator=g
    )
    film.draw(1)
    values = np.ma.filled(np.ma.asarray(film.figure.axes[0].images[0].get_array()), np.nan)
    side = round(4000**0.5)
    rows = np.stack(
        [
            values[3 * r + 1 : 3 * r + 3, 3 * c + 1 : 3 * c + 3].ravel()
            for r, c in (divmod(i, side) for i in range(4000))
        ]
    )
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    with torch.no_grad():
        machine = dbm()
        law = machine.even_log_prob(machine.split_even(states)).softmax(0)
    exact = (law.unsqueeze(-1) * states[:, :4]).sum(0).numpy()
    assert (np.abs(rows.mean(0) - exact) < 6.0 * rows.std(0) / 4000**0.5).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: plotting.layer_filters(nn.RBM(12, 3), SHAPE), TypeError, "DBM"),
        (lambda m: plotting.layer_filters(m, (3, 5)), ValueError, "images of shape"),
        (lambda m: plotting.layer_filters(m, SHAPE, max_filters=0), ValueError, "max_filters"),
        (lambda m: plotting.particle_animation(m, torch.zeros(4, 12), SHAPE), ValueError, "15"),
        (
            lambda m: plotting.particle_animation(m, torch.zeros(4, 15), SHAPE, num_frames=0),
            ValueError,
            "num_frames",
        ),
    ],
)
def test_refusals(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(module())


def test_weights_that_are_nan() -> None:
    dbm = module()
    with torch.no_grad():
        dbm.weights[1][0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        plotting.layer_filters(dbm(validate_args=False), SHAPE)
    assert isinstance(dbm(validate_args=False), DBM)
