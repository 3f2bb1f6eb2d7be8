"""PyTorch files open without running anything, whatever they pickle beside the weights."""

import collections
import io
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.files.headers import read_header
from checkpoints.files.pickles import OpaqueObject
from tests.hostile_files import load_pickle

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Runs:
    """Pickles itself as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def save(path, saved, zipped=True):
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def lightning_class(monkeypatch):
    """A class that pickles under the name of Lightning's callback, without importing Lightning."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for module in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    made = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", made, raising=False)
    return made


@FORMATS
def test_tensors_come_back_as_saved(tmp_path, zipped):
    weights = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2).half()}
    loaded = load_pickle(save(tmp_path / "w.pth", weights, zipped))
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert [loaded[name].dtype for name in weights] == [torch.float32, torch.int64, torch.float16]


@FORMATS
def test_objects_of_known_libraries_become_inert_and_their_weights_are_kept(
    tmp_path, zipped, lightning_class
):
    saved = {
        "state_dict": {"a": torch.ones(2)},
        "callbacks": {lightning_class: {"best": np.float64(0.5), "history": np.arange(3)}},
        "callback": lightning_class(),
        "folder": Path("runs"),
        "groups": collections.defaultdict(dict, {"lr": {"a": 1}}),
    }
    loaded = load_pickle(save(tmp_path / "last.ckpt", saved, zipped))
    assert torch.equal(loaded["state_dict"]["a"], torch.ones(2))
    assert isinstance(loaded["callback"], OpaqueObject)
    assert loaded["groups"] == {"lr": {"a": 1}}


@FORMATS
@pytest.mark.parametrize("function", [os.system, subprocess.call, eval], ids=["system", "call", "eval"])
def test_a_hostile_file_is_refused_and_never_run(tmp_path, zipped, function):
    trace = tmp_path / "trace"
    command = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    options = (
        (command, -1, None, None, None, None, None, True, True) if function is subprocess.call else (command,)
    )
    path = save(tmp_path / "evil.ckpt", {"state_dict": {}, "x": Runs(function, *options)}, zipped)
    with pytest.raises(ValueError, match="evil.ckpt asks for .* refused, nothing of it was run"):
        load_pickle(path)
    assert not trace.exists()


def test_a_function_of_a_known_library_is_not_run_either(tmp_path):
    target = save(tmp_path / "inner.pth", {"a": torch.ones(1)})
    loaded = load_pickle(save(tmp_path / "outer.ckpt", {"x": Runs(np.load, str(target)), "a": torch.ones(1)}))
    assert isinstance(loaded["x"], OpaqueObject)


def test_names_are_known_only_while_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_pickle(save(tmp_path / "w.ckpt", {"a": torch.ones(1), "b": np.float64(1.0)}))
    assert set(torch.serialization.get_safe_globals()) == before


@FORMATS
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_file_is_named_as_such(tmp_path, zipped, share):
    whole = save(tmp_path / "w.pth", {"a": torch.randn(2000)}, zipped).read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.pth is damaged or cut short, fetch it again"):
        load_pickle(cut)


def test_bytes_damaged_in_the_middle_of_the_pickle_give_one_sentence(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.randn(3)}, buffer)
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data[:20] + b"\xff\xff" + data[22:] if name.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match="bad.pth is") as raised:
        load_pickle(path)
    assert "weights_only" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_archive_of_other_things_is_told_apart(tmp_path):
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat.png", b"")
    with pytest.raises(ValueError, match="zip archive without PyTorch weights, it holds cat.png"):
        load_pickle(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_program_is_told_apart(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="script.pt is a TorchScript program"):
        load_pickle(tmp_path / "script.pt")


def test_a_compressed_archive_is_read_though_it_cannot_be_mapped(tmp_path):
    stored, packed = save(tmp_path / "w.pth", {"a": torch.randn(500)}), tmp_path / "packed.pth"
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert read_header(stored).pickle.mapped
    assert not read_header(packed).pickle.mapped
    assert torch.equal(load_pickle(packed)["a"], load_pickle(stored)["a"])
