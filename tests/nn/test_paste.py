# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines of patches as a machine of the image: energies and log Z by enumeration."""

import numpy as np
import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.nn.patches import grid_corners, patch_entries
from tests.distributions.families import uniform

FAMILIES = ["bernoulli", "ising", "categorical", "gaussian", "relu"]
OPTIONS = {"categorical": {"num_states": 2}}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def machine(
    visible: str = "bernoulli", hidden: str = "bernoulli", *, num_visible=4, num_hidden=2, **kw
):
    """A module with random parameters, small enough for two continuous layers to have a finite Z."""
    module = nn.RBM(
        num_visible * (2 if visible == "categorical" else 1),
        num_hidden * (2 if hidden == "categorical" else 1),
        visible,
        hidden,
        visible_options=OPTIONS.get(visible),
        hidden_options=OPTIONS.get(hidden),
        **{"dtype": torch.float64, "seed": 0, **kw},
    )
    for name, tensor in module.state_dict().items():
        bound = 0.1 if name == "weight" else 1.0
        tensor.copy_(uniform(tuple(tensor.shape), -bound, bound))
    return module


def states(module: nn.RBM, count: int = 6) -> torch.Tensor:
    """Some states of the visible layer."""
    unit = module().visible.neutral()
    return unit.sample(torch.zeros(count, unit.size).double()).detach()


def relative(values: torch.Tensor) -> torch.Tensor:
    return (values - values[0]).detach()


# --- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", FAMILIES)
@pytest.mark.parametrize("hidden", FAMILIES)
@pytest.mark.parametrize("centered", [(False, False), (True, True), (True, False)], ids=str)
def test_a_sum_of_overlapping_patches_is_the_product_of_the_machines(visible, hidden, centered):
    parts = [machine(visible, hidden, centered=c, num_hidden=2 + i) for i, c in enumerate(centered)]
    corners = [(0, 0), (0, 1)]
    image = nn.paste_rbms(parts, corners, (2, 3), patch_shape=(2, 2), overlap="sum")
    assert image.centered == any(centered)
    v = states(image)
    groups = v.unflatten(-1, (2, 3, -1))
    patches = [groups[:, :, left : left + 2].flatten(1) for _, left in corners]
    expected = sum(part().free_energy(p) for part, p in zip(parts, patches, strict=True))
    close(relative(image().free_energy(v)), relative(expected))


@pytest.mark.parametrize(
    "overlap", ["mean", "sum", lambda total, count: total / count.clamp(min=1)]
)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_log_partitions_of_disjoint_patches_add_up(overlap, centered):
    parts = [machine(num_hidden=n, centered=centered) for n in (2, 3, 1)]
    corners = [(0, 0), (0, 2), (0, 4)]
    image = nn.paste_rbms(parts, corners, (2, 6), patch_shape=(2, 2), overlap=overlap)
    assert image.weight.shape == (12, 6)
    v = states(image)
    pixels = v.reshape(-1, 2, 6)
    expected = torch.zeros(len(v)).double()
    with torch.no_grad():
        for part, (_, left) in zip(parts, corners, strict=True):
            own = part().normalize(exact_log_partition(part()))
            expected += own.log_prob(pixels[:, :, left : left + 2].flatten(1))
        whole = image().normalize(exact_log_partition(image()))
        close(whole.log_prob(v), expected)
        if not centered:
            total = sum(exact_log_partition(part()) for part in parts)
            close(exact_log_partition(image()), total)


def test_a_tiled_machine_is_the_product_over_the_grid():
    part = machine(num_visible=2, num_hidden=2)
    image = nn.tile_rbm(part, (2, 6), (1, 2))
    with torch.no_grad():
        close(exact_log_partition(image()), 6 * exact_log_partition(part()))
        v = states(image)
        close(image().free_energy(v), part().free_energy(v.reshape(-1, 6, 2)).sum(-1))


def test_channels_come_first():
    part = machine(num_visible=8)
    image = nn.tile_rbm(part, (2, 2, 4), (2, 2, 2))
    v = states(image)
    halves = v.reshape(-1, 2, 2, 4).split(2, -1)
    expected = sum(part().free_energy(half.flatten(1)) for half in halves)
    close(image().free_energy(v), expected)


# --- what is stored -----------------------------------------------------------------------------


def test_biases_are_divided_by_the_number_of_patches():
    parts = [machine() for _ in range(3)]
    image = nn.paste_rbms(parts, [(0, 0), (0, 1), (1, 1)], (3, 4), patch_shape=(2, 2))
    total, count = np.zeros((3, 4)), np.zeros((3, 4))
    for part, (top, left) in zip(parts, [(0, 0), (0, 1), (1, 1)], strict=True):
        total[top : top + 2, left : left + 2] += part.visible.bias.detach().reshape(2, 2).numpy()
        count[top : top + 2, left : left + 2] += 1
    expected = total / np.maximum(count, 1)
    assert count.max() == 3 and count.min() == 0
    close(image.visible.bias.detach(), torch.tensor(expected).flatten())
    close(image.hidden.bias.detach(), torch.cat([p.hidden.bias.detach() for p in parts]))
    inside = torch.zeros(12, 6, dtype=torch.bool)
    inside[[[0], [1], [4], [5]], :2] = True
    assert torch.equal(image.weight.detach()[[0, 1, 4, 5], :2], parts[0].weight.detach())
    assert not image.weight[[0, 1, 4, 5], 4:][0].any()
    assert not image.weight[[3, 7, 8, 11]][0].any()


def test_gaussian_locations_are_weighted_by_precision():
    parts = [machine("gaussian") for _ in range(2)]
    image = nn.paste_rbms(parts, [(0, 0), (0, 1)], (2, 3), patch_shape=(2, 2))
    (m1, m2) = (p.visible.loc.detach().reshape(2, 2) for p in parts)
    (p1, p2) = (p.visible.log_precision.exp().reshape(2, 2) for p in parts)
    loc, precision = image().visible.parameters.values()
    close(precision.reshape(2, 3)[:, 1], (p1[:, 1] + p2[:, 0]) / 2)
    middle = (p1[:, 1] * m1[:, 1] + p2[:, 0] * m2[:, 0]) / (p1[:, 1] + p2[:, 0])
    close(loc.detach().reshape(2, 3)[:, 1], middle)
    close(loc.detach().reshape(2, 3)[:, 0], m1[:, 0])


def test_pixels_without_a_patch():
    image = nn.paste_rbms(
        [machine("gaussian", centered=True)], [(0, 0)], (2, 3), patch_shape=(2, 2)
    )
    for tensor, value in ((image.visible.loc, 0.0), (image.visible.log_precision, 0.0)):
        assert torch.equal(tensor.detach().reshape(2, 3)[:, 2], torch.full((2,), value).double())
    assert not image.weight.reshape(2, 3, -1)[:, 2].any()
    assert not image.visible_offset.reshape(2, 3)[:, 2].any()


def test_positions_by_entries():
    parts = [machine() for _ in range(2)]
    corners = nn.paste_rbms(parts, [(0, 0), (0, 2)], (2, 4), patch_shape=(2, 2))
    vectors = [patch_entries((2, 4), (2, 2), 0, 0), np.array([2, 3, 6, 7])]
    entries = nn.paste_rbms(parts, vectors, (8,))
    assert all(torch.equal(t, entries.state_dict()[n]) for n, t in corners.state_dict().items())
    # Any order, and lists.
    turned = nn.paste_rbms(parts[:1], [[7, 0, 3, 5]], (8,))
    assert torch.equal(turned.weight.detach()[[7, 0, 3, 5]], parts[0].weight.detach())


def test_noise_outside_of_patches():
    part = machine()
    image, again = (nn.tile_rbm(part, (20, 20), (2, 2), noise_scale=0.01, seed=4) for _ in range(2))
    assert torch.equal(image.weight, again.weight)
    silent = nn.tile_rbm(part, (20, 20), (2, 2)).weight.detach()
    noise = (image.weight.detach() - silent)[silent == 0.0]
    assert torch.equal(image.weight.detach()[silent != 0.0], silent[silent != 0.0])
    # 79,200 draws: the standard error of the deviation is 2.5e-5.
    assert abs(noise.std().item() - 0.01) < 1.5e-4 and bool((noise != 0.0).all())


def test_without_noise_the_global_generator_is_not_used():
    part = machine()
    state = torch.get_rng_state()
    nn.tile_rbm(part, (4, 4), (2, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_result_is_a_module_of_its_own():
    part = machine("gaussian", centered=True, dtype=torch.float32)
    before = {name: t.clone() for name, t in part.state_dict().items()}
    image = nn.tile_rbm(part, (4, 4), (2, 2))
    assert image.weight.dtype == torch.float32 and image.weight.requires_grad
    again = nn.RBM(**image.config())
    again.load_state_dict(image.state_dict())
    with torch.no_grad():
        for tensor in image.state_dict().values():
            tensor.add_(1.0)
    assert all(torch.equal(before[name], t) for name, t in part.state_dict().items())


# --- grids --------------------------------------------------------------------------------------


def test_grid_corners():
    assert grid_corners((5, 4), (3, 2), stride=(1, 2)) == [
        (i, j) for i in (0, 1, 2) for j in (0, 2)
    ]
    assert grid_corners((3, 4, 4), (3, 4, 4)) == [(0, 0)]


def test_overlapping_tiles():
    part = machine()
    image = nn.tile_rbm(part, (3, 3), (2, 2), stride=1, overlap="sum")
    v = states(image)
    pixels = v.reshape(-1, 3, 3)
    patches = [pixels[:, i : i + 2, j : j + 2].flatten(1) for i in (0, 1) for j in (0, 1)]
    close(image().free_energy(v), sum(part().free_energy(p) for p in patches))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"rbms": []},
            ValueError,
            "at least one machine and a position each, got 0 .* 2 positions",
        ),
        ({"positions": [(0, 0)]}, ValueError, "got 2 machines and 1 positions"),
        ({"positions": [(0, 0), (0, 3)]}, ValueError, r"at \(0, 3\) does not fit into an image"),
        ({"positions": [(0, 0), (-1, 0)]}, ValueError, r"at \(-1, 0\) does not fit"),
        ({"positions": [(0, 0), (0, 1.5)]}, TypeError, "a corner must be two whole numbers"),
        ({"positions": [(0, 0), "x"]}, TypeError, r"a tuple \(top, left\) or a vector of entries"),
        ({"positions": [(0, 0), [0.5] * 4]}, TypeError, "whole numbers, got torch.float"),
        ({"positions": [(0, 0), [0, 1, 2, 8]]}, ValueError, "different numbers from 0 to 7"),
        ({"positions": [(0, 0), [0, 1, 2, 2]]}, ValueError, "different numbers from 0 to 7"),
        ({"positions": [(0, 0), [0, 1, 2]]}, ValueError, "has 3 entries, its machine 4"),
        ({"patch_shape": None}, ValueError, "positions by their corners need a patch_shape"),
        ({"patch_shape": (2, 1)}, ValueError, "has 2 entries, its machine 4"),
        ({"patch_shape": (1, 2, 2)}, ValueError, "differ in their channels"),
        ({"image_shape": (2, 4.0)}, ValueError, "image_shape must hold whole numbers >= 1"),
        ({"image_shape": (8,)}, ValueError, r"image_shape must be \(H, W\) or \(C, H, W\)"),
        (
            {"overlap": "max"},
            ValueError,
            'overlap must be "mean", "sum" or a function, got \'max\'',
        ),
        ({"overlap": lambda t, c: 1.0}, ValueError, r"a tensor of shape \(8,\), got float"),
        ({"overlap": lambda t, c: t / 0}, ValueError, "overlap must return finite values"),
        ({"noise_scale": -1.0}, ValueError, "weight_scale must be a number >= 0"),
        ({"rbms": [machine(), 1]}, TypeError, r"rbms\[1\] must be a pyro_ebm.nn.RBM, got int"),
        (
            {"rbms": [machine(), machine("ising")]},
            ValueError,
            r"differ: .*bernoulli.* rbms\[1\], .*ising",
        ),
    ],
)
def test_impossible_pastes(arguments, error, message):
    good = {
        "rbms": [machine(), machine()],
        "positions": [(0, 0), (0, 2)],
        "image_shape": (2, 4),
        "patch_shape": (2, 2),
    }
    with pytest.raises(error, match=message):
        nn.paste_rbms(**{**good, **arguments})


def test_layers_that_are_one_unit():
    counts = nn.RBM(4, 2, "multinomial", visible_options={"total_count": 3})
    with pytest.raises(ValueError, match="multinomial layers cannot be pasted"):
        nn.tile_rbm(counts, (2, 4), (2, 2))
    hidden = nn.RBM(4, 2, hidden="multinomial", hidden_options={"total_count": 3})
    with pytest.raises(ValueError, match="multinomial layers cannot be pasted"):
        nn.tile_rbm(hidden, (2, 4), (2, 2))
    with pytest.raises(ValueError, match="mixed layers cannot be pasted"):
        nn.tile_rbm(nn.ClassificationRBM(2, 2, 2), (2, 4), (2, 2))


def test_groups_are_not_divided():
    with pytest.raises(ValueError, match="whole one-hot groups of 2 entries, in order"):
        nn.paste_rbms([machine("categorical", num_visible=1)], [[1, 2]], (2,))


@pytest.mark.parametrize(
    ("stride", "message"),
    [
        (0, "stride must be a whole number >= 1 or two of them, got 0"),
        ((1, 1, 1), "stride must be a whole number"),
        (2, "rows: patches of 2 at a stride of 2 do not end at the edge of 5"),
    ],
)
def test_impossible_grids(stride, message):
    with pytest.raises(ValueError, match=message):
        nn.tile_rbm(machine(), (5, 4), (2, 2), stride=stride)
