# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Model files: round trips, nothing executable, whole or not there, clear refusals."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import Trainer, TrainerConfig
from tests.training.machines import LAYERS, assert_same_state, random_module, some_bits


@pytest.fixture
def module() -> nn.RBM:
    return random_module(("bernoulli", "gaussian"), centered=True, learn_precision=True)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


def header_of(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}


def rewrite(path: Path, changes: dict[str, Tensor | None], model: object = ...) -> None:
    """Change tensors (None: drop) or the description in a model file, which stays well formed."""
    header, tensors = header_of(path)
    kept = {n: t for n, t in {**tensors, **changes}.items() if t is not None}
    if model is not ...:
        header["pyro_ebm"] = json.dumps({"version": 1, "model": model})
    safetensors.torch.save_file(kept, path, metadata=header)


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
@pytest.mark.parametrize("family", LAYERS)
def test_round_trip(family, learnt, centered, dtype, path):
    pair = (family, "relu")
    module = random_module(pair, centered=centered, learn_precision=learnt, dtype=dtype)
    pyro_ebm.save(module, path)
    state = torch.get_rng_state()
    loaded = pyro_ebm.load(path)
    # Loading a seeded module draws nothing from the global generator.
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is nn.RBM and loaded.config() == module.config()
    assert_same_state(loaded, module)
    assert dict(loaded.named_parameters()).keys() == dict(module.named_parameters()).keys()
    v = torch.ones(2, module.weight.shape[0], dtype=dtype)
    assert torch.equal(loaded().free_energy(v), module().free_energy(v))


def test_file_is_safetensors_with_json_only(module, path):
    pyro_ebm.save(module, path)
    header, tensors = header_of(path)
    # One entry: the order of several would be random, and equal models must be equal files.
    assert set(header) == {"pyro_ebm"}
    expected = {"version": 1, "model": {"class": "RBM", "config": module.config()}}
    assert json.loads(header["pyro_ebm"]) == expected
    assert tensors.keys() == module.state_dict().keys()
    content = path.read_bytes()
    # The file is its header and the numbers, to the last byte: there is no room for a pickle.
    length = int.from_bytes(content[:8], "little")
    json.loads(content[8 : 8 + length])
    assert len(content) == 8 + length + sum(t.nbytes for t in tensors.values())


def test_equal_models_are_equal_files(module, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for p in paths:
        pyro_ebm.save(module, p)
    assert len({p.read_bytes() for p in paths}) == 1


def test_files_of_the_first_format(module, path):
    """With an entry for every value, as the package wrote them first."""
    metadata = {"format": "pyro_ebm", "model": json.dumps(description_of(module))}
    safetensors.torch.save_file(module.state_dict(), path, metadata=metadata)
    assert_same_state(pyro_ebm.load(path), module)


def description_of(module: nn.RBM) -> dict[str, object]:
    return {"class": "RBM", "config": module.config()}


@pytest.mark.parametrize("version", [2, "1", None])
def test_files_of_a_newer_format(module, path, version):
    header = {"version": version, "model": description_of(module)}
    metadata = {"pyro_ebm": json.dumps(header)}
    safetensors.torch.save_file(module.state_dict(), path, metadata=metadata)
    with pytest.raises(ModelFileError, match=r"model\.safetensors has version .* by a newer one"):
        pyro_ebm.load(path)


def test_load_from_a_run_folder_and_by_text(module, path):
    pyro_ebm.save(module, path)
    for where in (path.parent, str(path), str(path.parent)):
        assert_same_state(pyro_ebm.load(where), module)
    assert pyro_ebm.load(path, device="cpu").weight.device.type == "cpu"
    assert pyro_ebm.load(path, device="meta").weight.device.type == "meta"


def test_load_from_a_checkpoint(tmp_path):
    module = nn.RBM(6, 3, seed=0, centered=True)
    checkpoint = tmp_path / "checkpoint.safetensors"
    config = TrainerConfig(
        num_epochs=1, seed=0, checkpoint=checkpoint, momentum=0.5, progress=False
    )
    Trainer(module, config).fit(some_bits(100))
    assert_same_state(pyro_ebm.load(checkpoint), module)


def test_save_makes_the_folder_and_replaces_the_file(module, tmp_path):
    path = tmp_path / "a" / "b" / "model.safetensors"
    pyro_ebm.save(nn.RBM(2, 2), path)
    pyro_ebm.save(module, path)
    assert_same_state(pyro_ebm.load(path), module)
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_files_have_the_usual_permissions(module, path):
    """Others of a group can read a model as they can read any file, whatever writes it."""
    pyro_ebm.save(module, path)
    usual = path.with_name("usual")
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_only_modules_of_the_package_are_saved(path):
    with pytest.raises(TypeError, match="cannot save a Linear"):
        pyro_ebm.save(torch.nn.Linear(2, 2), path)
    assert not path.exists()


# --- atomic -------------------------------------------------------------------------------------


def failing_save_file(error: BaseException):
    def save_file(tensors, filename, metadata=None):
        Path(filename).write_bytes(b"half a file")
        raise error

    return save_file


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["os", "ctrl-c"])
@pytest.mark.parametrize("moment", ["write", "replace"])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_failed_write_leaves_the_old_file(module, path, existing, moment, error, monkeypatch):
    old = random_module(("bernoulli", "bernoulli"))
    if existing:
        pyro_ebm.save(old, path)
    content = path.read_bytes() if existing else None
    if moment == "write":
        monkeypatch.setattr(safetensors.torch, "save_file", failing_save_file(error))
    else:

        def failing_replace(source, target):
            assert Path(source).stat().st_size > 0
            raise error

        monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(type(error)):
        pyro_ebm.save(module, path)
    assert sorted(path.parent.iterdir()) == ([path] if existing else [])
    if existing:
        assert path.read_bytes() == content
        assert_same_state(pyro_ebm.load(path), old)


# --- refusals -----------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model file at .*absent\.safetensors"):
        pyro_ebm.load(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no model file at .*model\.safetensors"):
        pyro_ebm.load(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_file(module, path, kept):
    pyro_ebm.save(module, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelFileError, match=r"model\.safetensors is no readable safetensors file"):
        pyro_ebm.load(path)


@pytest.mark.parametrize("size", [1, 8, 100, 5000])
def test_random_bytes(path, size):
    generator = torch.Generator().manual_seed(size)
    noise = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
    path.write_bytes(noise.numpy().tobytes())
    with pytest.raises(ModelFileError, match=r"model\.safetensors is no readable"):
        pyro_ebm.load(path)


def test_a_pickle_is_not_executed(path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save(Bomb(), path)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        pyro_ebm.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"model": "{}"}], ids=str)
def test_foreign_safetensors_file(path, metadata):
    safetensors.torch.save_file({"weight": torch.zeros(2, 2)}, path, metadata=metadata)
    with pytest.raises(ModelFileError, match=r"model\.safetensors is a safetensors file, but not"):
        pyro_ebm.load(path)


@pytest.mark.parametrize(
    "metadata",
    [{"format": "pyro_ebm", "model": "{not json"}, {"pyro_ebm": "{"}, {"pyro_ebm": "[1]"}],
    ids=str,
)
def test_damaged_metadata(path, metadata):
    safetensors.torch.save_file({"weight": torch.zeros(2, 2)}, path, metadata=metadata)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: damaged metadata"):
        pyro_ebm.load(path)


def description(**changes: object) -> dict[str, object]:
    config = {**nn.RBM(3, 2, seed=0).config(), **changes}
    return {"class": "RBM", "config": {n: v for n, v in config.items() if v is not ...}}


@pytest.mark.parametrize(
    "model",
    [
        None,
        [],
        "RBM",
        3,
        {},
        {"class": "RBM"},
        {"class": "RBM", "config": None},
        {"class": ["RBM"], "config": {}},
        {"class": "os.system", "config": {"command": "true"}},
        description(num_visible=...),
        description(num_visible="3"),
        description(num_hidden=-2),
        description(visible="unheard-of"),
        description(visible_options={"k": 1}),
        description(weight_scale=-1.0),
        description(surprise=1),
    ],
    ids=str,
)
def test_wrong_description(path, model):
    pyro_ebm.save(nn.RBM(3, 2, seed=0), path)
    rewrite(path, {}, description())
    pyro_ebm.load(path)
    rewrite(path, {}, model)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: not a model of this package"):
        pyro_ebm.load(path)


def test_no_description(path):
    metadata = {"format": "pyro_ebm"}
    safetensors.torch.save_file({"weight": torch.zeros(2, 2)}, path, metadata=metadata)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: not a model of this package"):
        pyro_ebm.load(path)


@pytest.mark.parametrize(
    "name", ["weight", "visible.bias", "hidden.log_precision", "hidden_offset"]
)
def test_missing_tensors(module, path, name):
    pyro_ebm.save(module, path)
    rewrite(path, {name: None})
    with pytest.raises(
        ModelFileError, match=rf"model\.safetensors: tensors \['{name}'\] are missing"
    ):
        pyro_ebm.load(path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("weight", torch.zeros(2, 3)),
        ("weight", torch.zeros(3, 2, dtype=torch.int64)),
        ("visible.bias", torch.zeros(4)),
        ("hidden_offset", torch.zeros(1, 2)),
    ],
    ids=["weight", "integers", "bias", "offset"],
)
def test_wrong_tensors(module, path, name, tensor):
    pyro_ebm.save(module, path)
    rewrite(path, {name: tensor})
    with pytest.raises(ModelFileError, match=r"model\.safetensors: tensors do not fit the config"):
        pyro_ebm.load(path)


@pytest.mark.parametrize("function", ["save", "load"])
def test_without_safetensors_the_message_names_the_extra(module, path, function, monkeypatch):
    pyro_ebm.save(module, path)
    content = path.read_bytes()
    for name in [n for n in sys.modules if n.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs safetensors: pip install 'pyro-ebm\[train\]'"):
        pyro_ebm.save(module, path) if function == "save" else pyro_ebm.load(path)
    assert path.read_bytes() == content
