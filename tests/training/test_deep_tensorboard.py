# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""TensorBoard of deep machines: what is in the files, and that looking changes no run."""

import numpy as np
import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.training import TensorBoardLogger, Trainer, TrainerConfig
from pyro_ebm.training.metrics import METRICS
from pyro_ebm.training.tensorboard.pictures import tile
from tests.training.machines import assert_same_state, some_bits
from tests.training.test_tensorboard import events, image

pytest.importorskip("tensorboard")

DATA = some_bits(60)
VALIDATION = some_bits(30, seed=1)
SHAPE = (2, 3)
FAST_AIS = {"ais_log_likelihood": {"every": 1, "num_chains": 10, "num_temperatures": 20}}


def run(callbacks=(), **options) -> Trainer:
    module = nn.DBM(6, [4, 3], seed=0, centered=True, weight_scale=0.3)
    defaults = {"num_epochs": 2, "batch_size": 6, "seed": 5, "progress": False, "persistent": True}
    trainer = Trainer(module, TrainerConfig(**{**defaults, **options}))
    trainer.fit(DATA, VALIDATION, callbacks=callbacks)
    return trainer


@pytest.mark.parametrize("phase", ["gibbs", "tempering"])
def test_looking_changes_nothing(phase, tmp_path):
    """A run with every metric and every picture ends in the same bits as one with none."""
    options = {"negative_phase": phase, "num_replicas": 3, "averaging": 0.5}
    names = [name for name, metric in METRICS.items() if metric.deep]
    plain = run(metrics=[], **options)
    state = torch.get_rng_state()
    logger = TensorBoardLogger(tmp_path, image_shape=SHAPE)
    seen = run([logger], metrics=names, metrics_options=FAST_AIS, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(plain.module, seen.module)
    assert_same_state(plain.averaged, seen.averaged)
    assert torch.equal(plain.chains, seen.chains)
    assert torch.equal(plain._generator.get_state(), seen._generator.get_state())
    first, second = plain._gradient.state(), seen._gradient.state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_written(tmp_path):
    logger = TensorBoardLogger(tmp_path, image_shape=SHAPE, num_filters=3, num_chains=5, num_rows=4)
    trainer = run([logger], metrics=["hidden_units", "elbo"])
    tags = events(tmp_path).Tags()
    by_layer = {f"{name}/h{layer}" for name in ("filters", "activations") for layer in (1, 2)}
    assert set(tags["images"]) == by_layer | {"chains", "completions", "reconstructions"}
    names = [name for name, _ in trainer.module.named_parameters()]
    expected = {f"{kind}/{name}" for kind in ("parameters", "gradients") for name in names}
    expected |= {"hidden_activations/h1", "hidden_activations/h2"}
    assert set(tags["histograms"]) == expected
    assert {"dead_units_h2", "elbo"} <= set(tags["scalars"])
    with torch.no_grad():
        dist, rows = trainer.module(), VALIDATION[:4]
        product = (dist.weights[0] @ dist.weights[1]).T
        order = product.norm(dim=1).argsort(descending=True)
        filters = tile(0.5 + 0.5 * product[order] / product.abs().max(), SHAPE)
        means = dist.mean_field(rows, max_updates=500, tolerance=1e-6).means
        back = dist.layer_given(0, [means[0]]).mean
        machine = dist.bipartite()
        odd = machine.hidden.mean(machine.hidden_field(trainer.chains[:5]))
        pictures = {
            "filters/h2": filters,
            "activations/h2": means[1].unsqueeze(0),
            "reconstructions": tile(torch.cat([rows, back]), SHAPE, num_columns=4),
            "chains": tile(dist.layer_given(0, [odd]).mean, SHAPE),
        }
    for tag, picture in pictures.items():
        shown = image(tmp_path, tag)
        shown = shown[:, :, 0] if shown.ndim == 3 else shown
        np.testing.assert_allclose(shown, picture[0].numpy(), atol=1.6 / 255, err_msg=tag)
    shown = image(tmp_path, "completions")
    shown = shown[:, :, 0] if shown.ndim == 3 else shown
    for n, row in enumerate(rows.reshape(4, 2, 3).numpy()):
        columns = slice(1 + 4 * n, 4 + 4 * n)
        np.testing.assert_allclose(shown[1:3, columns], row, atol=1.01 / 255)
        np.testing.assert_allclose(shown[4, columns], row[0], atol=1.01 / 255)
        assert ((shown[5, columns] > 0) & (shown[5, columns] < 1)).all()


def test_without_a_shape_or_chains(tmp_path):
    run([TensorBoardLogger(tmp_path / "a")], persistent=False)
    assert set(events(tmp_path / "a").Tags()["images"]) == {"activations/h1", "activations/h2"}
    run([TensorBoardLogger(tmp_path / "b", image_shape=SHAPE)], persistent=False)
    tags = set(events(tmp_path / "b").Tags()["images"])
    assert "chains" not in tags and "reconstructions" in tags


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="images has 'reconstructions', which is of a DBM"):
        logger = TensorBoardLogger(tmp_path, images=["reconstructions"], image_shape=SHAPE)
        Trainer(nn.RBM(6, 2), TrainerConfig(progress=False)).fit(DATA, callbacks=[logger])
    with pytest.raises(ValueError, match="images has 'chains', which needs persistent=True"):
        run([TensorBoardLogger(tmp_path, images=["chains"], image_shape=SHAPE)], persistent=False)
    with pytest.raises(
        ValueError, match=r"image_shape \(3, 3\) has 9 entries, the visible layer 6"
    ):
        run([TensorBoardLogger(tmp_path, image_shape=(3, 3))])
    with pytest.raises(ValueError, match="rows must be visible states of shape"):
        run([TensorBoardLogger(tmp_path, rows=torch.full((2, 6), 0.5))])
