# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Models by name."""

import re
import shutil

import pytest
import torch

import pyro_ebm
from pyro_ebm import nn
from tests.test_project import ROOT

MODELS = ROOT / "examples" / "models"


@pytest.mark.parametrize("name", [path.stem for path in sorted(MODELS.glob("*.safetensors"))])
def test_pretrained_models_draw_images(name):
    """The corners of a digit or of clothes are nearly always dark, the centre is not."""
    model = pyro_ebm.load(name)
    assert isinstance(model, nn.NeuralBoltzmannMachine) and model.num_visible == 784
    with torch.no_grad():
        machine = model.condition(torch.eye(10))
        machine.num_gibbs_steps = 50
        torch.manual_seed(0)
        images = machine.sample((20,)).unflatten(-1, (28, 28))
    assert images.shape == (20, 10, 28, 28) and set(images.unique().tolist()) == {-1.0, 1.0}
    corners = images[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < -0.9 < -0.6 < images[..., 10:18, 10:18].mean()


def test_names_are_looked_for_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_EBM_MODELS", str(tmp_path))
    module = nn.RBM(3, 2, seed=0)
    pyro_ebm.save(module, tmp_path / "small.safetensors")
    assert torch.equal(pyro_ebm.load("small").weight, module.weight)
    with pytest.raises(FileNotFoundError, match=re.escape("which has ['small']")):
        pyro_ebm.load("large")


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_EBM_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    pyro_ebm.save(nn.RBM(3, 2), "models/small.safetensors")
    pyro_ebm.save(nn.RBM(5, 2), "other.safetensors")
    shutil.move("other.safetensors", "small")
    assert pyro_ebm.load("small").weight.shape == (5, 2)
    with pytest.raises(FileNotFoundError, match="no model file at"):
        pyro_ebm.load("models/none.safetensors")
