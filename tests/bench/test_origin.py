"""A row knows its command, commit, machine and files, and notices when those files change."""

import json

import pytest

from bench import origin
from bench.origin import changed_files, describe, device_words, model_files, origin_of, place_of
from bench.results import ROOT
from common.hashing import sha256_of

TINY = ROOT / "models/tiny.yaml"


def test_an_origin_says_command_machine_libraries_and_files_by_their_content():
    found = origin_of("bench.any", {"size": (64, 64)}, "python -m bench.any", "cpu", [TINY])
    assert found["command"] == "python -m bench.any"
    assert found["setting"] == {"size": [64, 64]}  # as JSON gives it back
    assert found["files"] == {"models/tiny.yaml": sha256_of(TINY)}
    assert {"python", "torch"} <= found["versions"].keys()
    assert found == json.loads(json.dumps(found))


def test_a_models_files_are_its_yaml_with_its_bases_and_its_weights(tmp_path):
    names = [place_of(path) for path in model_files(ROOT / "models/tiny_lite.yaml")]
    assert names == [
        "models/tiny_lite.yaml", "models/tiny.yaml", "models/tiny.safetensors",
        "models/tiny_control_lite.safetensors",
    ]  # fmt: skip
    other = tmp_path / "other.safetensors"
    assert model_files(TINY, [other]) == [TINY, other]
    assert place_of(other) == "other.safetensors"  # no folder of this machine


def test_changed_and_missing_files_are_named_and_foreign_ones_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("same", "changed", "gone"):
        (folder / name).write_text(name)
    files = {f"models/{name}": sha256_of(folder / name) for name in ("same", "changed", "gone")}
    (folder / "changed").write_text("otherwise")
    (folder / "gone").unlink()
    assert changed_files({"files": files | {"elsewhere.ckpt": "0" * 64}}) == ["models/changed", "models/gone"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nmodel name\t: second core\n",
         "AMD EPYC (family 26, model 2)"),
        ("model name\t: Some CPU\n", "Some CPU"),
    ],
)  # fmt: skip
def test_a_processor_is_told_by_all_that_the_kernel_says(tmp_path, monkeypatch, text, name):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(origin, "CPUINFO", tmp_path / "cpuinfo")
    found = describe("cpu")
    assert found["name"] == name
    assert device_words(found) == f"{name}, {found['threads']} threads"


def test_a_gpu_has_no_threads_to_tell():
    assert device_words({"name": "Some GPU", "threads": None}) == "Some GPU"
