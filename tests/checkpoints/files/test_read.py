"""A weights file of any kind opens as a flat dictionary; anything else is refused in one sentence."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.files.lazy import LazyTensor, read
from checkpoints.files.read import get_state_dict, open_weight_file, read_weight_file

WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.float16)}


def write(path, kind):
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_kind_is_told_by_content_whatever_the_suffix(tmp_path, kind, suffix):
    file = read_weight_file(write(tmp_path / f"weights{suffix}", kind))
    assert all(torch.equal(file.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert file.mapped == (kind != "legacy")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see mappings")
@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_tensors_are_mapped_from_the_file_and_the_mapping_goes_with_them(tmp_path, kind):
    path = write(tmp_path / "mapped", kind)
    file = read_weight_file(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del file
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = write(tmp_path / "w.safetensors", "safetensors")
    read_weight_file(path).tensors["a"].zero_()
    assert torch.equal(read_weight_file(path).tensors["a"], WEIGHTS["a"])


def test_weights_are_taken_out_of_state_dict_and_the_rest_is_named(tmp_path):
    saved = {"state_dict": WEIGHTS, "global_step": 5, "optimizer_states": [{"a": torch.ones(1)}]}
    torch.save(saved, tmp_path / "last.ckpt")
    file = read_weight_file(tmp_path / "last.ckpt")
    assert list(file.tensors) == ["a", "b"]
    assert file.others == {"global_step": 0, "optimizer_states": 4}  # bytes of tensors inside


def test_a_container_inside_itself_is_counted_once(tmp_path):
    ring = [torch.ones(2)]
    ring.append(ring)
    torch.save({"state_dict": WEIGHTS, "ring": ring}, tmp_path / "ring.ckpt")
    assert read_weight_file(tmp_path / "ring.ckpt").others == {"ring": 8}


def test_what_a_safetensors_file_says_of_itself_comes_along(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"ss_network_dim": "8"})
    assert read_weight_file(tmp_path / "w.safetensors").metadata == {"ss_network_dim": "8"}
    assert read_weight_file(write(tmp_path / "w.ckpt", "zip")).metadata == {}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_an_opened_file_is_lazy_where_it_can_be_mapped(tmp_path, kind):
    file = open_weight_file(write(tmp_path / "w", kind))
    assert all(isinstance(tensor, LazyTensor) == (kind != "legacy") for tensor in file.tensors.values())
    assert all(torch.equal(read(file.tensors[name]), WEIGHTS[name]) for name in WEIGHTS)


def test_get_state_dict_takes_nested_and_bare_dictionaries():
    assert get_state_dict({"state_dict": WEIGHTS}) is WEIGHTS
    assert get_state_dict(WEIGHTS) is WEIGHTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (pickle.dumps({"a": 1}), "is a plain Python pickle"),
        (b"OggS0123456789", "is not a weights file"),
        (b"\x10\0\0\0\0\0\0\0{", "w.safetensors is damaged or cut short"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weight_file(path)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_safetensors_file_is_named_as_such(tmp_path, share):
    whole = write(tmp_path / "w.safetensors", "safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.safetensors is damaged or cut short, fetch it again"):
        read_weight_file(tmp_path / "cut.safetensors")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*nowhere.ckpt"):
        read_weight_file(tmp_path / "nowhere.ckpt")
    with pytest.raises(ValueError, match="is a folder: .* holds none"):
        read_weight_file(tmp_path)
    write(tmp_path / "model.safetensors", "safetensors")
    with pytest.raises(ValueError, match="for example model.safetensors"):
        read_weight_file(tmp_path)


def test_a_whole_module_or_a_dictionary_without_tensors_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="holds a whole Python object"):
        read_weight_file(tmp_path / "module.pth")
    torch.save({"lr": 0.1}, tmp_path / "settings.pth")
    with pytest.raises(ValueError, match="holds no tensors, only lr"):
        read_weight_file(tmp_path / "settings.pth")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"image_proj": {"proj.weight": torch.ones(1)}, "ip_adapter": {}}, "w.pth is an IP-Adapter"),
        ({"adapter": {"body.0.block1.weight": torch.ones(1)}}, "w.pth is a T2I-Adapter"),
        (
            {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(1, 8)}},
            "w.pth is a textual-inv",
        ),
    ],
)
def test_neighbours_that_keep_dictionaries_in_dictionaries_are_named(tmp_path, saved, message):
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        read_weight_file(tmp_path / "w.pth")


def test_names_that_are_no_text_become_text(tmp_path):
    torch.save({1: torch.ones(2), ("a", 2): torch.ones(1)}, tmp_path / "w.pth")
    assert list(read_weight_file(tmp_path / "w.pth").tensors) == ["1", "('a', 2)"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module_of_either_format_is_named(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds a whole Python object"):
        read_weight_file(tmp_path / "m.pth")
