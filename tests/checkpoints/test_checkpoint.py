"""Weights of any form open once, as one object; anything else is refused in one sentence."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import checkpoints.files.lazy
from checkpoints.checkpoint import TRAINER_STATE, open_checkpoint
from checkpoints.files.headers import get_state_dict
from checkpoints.files.lazy import LazyTensor, read
from quantize.files.write import METADATA_KEY as QUANTIZE_KEY
from quantize.prune.record import METADATA_KEY as PRUNE_KEY
from quantize.prune.record import Record
from tests.stored_tensors import stored_tensors

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
    tensors = stored_tensors(write(tmp_path / f"weights{suffix}", kind))
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see mappings")
@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_tensors_are_mapped_from_the_file_and_the_mapping_goes_with_them(tmp_path, kind):
    path = write(tmp_path / "mapped", kind)
    tensors = stored_tensors(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del tensors
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = write(tmp_path / "w.safetensors", "safetensors")
    stored_tensors(path)["a"].zero_()
    assert torch.equal(stored_tensors(path)["a"], WEIGHTS["a"])


def test_weights_are_taken_out_of_state_dict_and_the_rest_is_named(tmp_path):
    saved = {"state_dict": WEIGHTS, "global_step": 5, "optimizer_states": [{"a": torch.ones(1)}]}
    torch.save(saved, tmp_path / "last.ckpt")
    checkpoint = open_checkpoint(tmp_path / "last.ckpt")
    assert list(checkpoint.tensors()) == list(checkpoint.header.tensors) == ["a", "b"]
    assert checkpoint.header.others == {"global_step": 0, "optimizer_states": 4}  # bytes of tensors inside


def test_a_container_inside_itself_is_counted_once(tmp_path):
    ring = [torch.ones(2)]
    ring.append(ring)
    torch.save({"state_dict": WEIGHTS, "ring": ring}, tmp_path / "ring.ckpt")
    assert open_checkpoint(tmp_path / "ring.ckpt").header.others == {"ring": 8}


def test_what_a_safetensors_file_says_of_itself_comes_along(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"ss_network_dim": "8"})
    assert open_checkpoint(tmp_path / "w.safetensors").header.metadata == {"ss_network_dim": "8"}
    assert open_checkpoint(write(tmp_path / "w.ckpt", "zip")).header.metadata == {}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_an_opened_file_is_lazy_where_it_can_be_mapped(tmp_path, kind):
    tensors = open_checkpoint(write(tmp_path / "w", kind)).tensors()
    assert all(isinstance(tensor, LazyTensor) == (kind != "legacy") for tensor in tensors.values())
    assert all(torch.equal(read(tensors[name]), WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("entry", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_forward_module.", "module._orig_mod."])
def test_what_trainers_wrap_a_model_in_is_taken_off(tmp_path, entry, wrapper):
    wrapped = {wrapper + name: value for name, value in WEIGHTS.items()}
    path = tmp_path / "w.ckpt"
    torch.save(wrapped if entry is None else {entry: wrapped, "step": 3}, path)
    opened = open_checkpoint(path)
    assert opened.header.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(opened.tensors()[name].read(), value) for name, value in WEIGHTS.items())
    save_file(wrapped, tmp_path / "w.safetensors")
    opened = open_checkpoint(tmp_path / "w.safetensors")
    assert opened.tensors().keys() == opened.header.tensors.keys() == WEIGHTS.keys()


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
        stored_tensors(path)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_safetensors_file_is_named_as_such(tmp_path, share):
    whole = write(tmp_path / "w.safetensors", "safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.safetensors is damaged or cut short, fetch it again"):
        stored_tensors(tmp_path / "cut.safetensors")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*nowhere.ckpt"):
        stored_tensors(tmp_path / "nowhere.ckpt")
    with pytest.raises(ValueError, match="is a folder: .* holds none"):
        stored_tensors(tmp_path)
    write(tmp_path / "model.safetensors", "safetensors")
    with pytest.raises(ValueError, match="for example model.safetensors"):
        stored_tensors(tmp_path)


def test_a_whole_module_or_a_dictionary_without_tensors_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="holds a whole Python object"):
        stored_tensors(tmp_path / "module.pth")
    torch.save({"lr": 0.1}, tmp_path / "settings.pth")
    with pytest.raises(ValueError, match="holds no tensors, only lr"):
        stored_tensors(tmp_path / "settings.pth")


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
def test_foreign_formats_that_keep_dictionaries_in_dictionaries_are_named(tmp_path, saved, message):
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        stored_tensors(tmp_path / "w.pth")


def test_names_that_are_no_text_become_text(tmp_path):
    torch.save({1: torch.ones(2), ("a", 2): torch.ones(1)}, tmp_path / "w.pth")
    assert list(stored_tensors(tmp_path / "w.pth")) == ["1", "('a', 2)"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module_of_either_format_is_named(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds a whole Python object"):
        stored_tensors(tmp_path / "m.pth")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_opening_reads_the_header_alone(tmp_path, kind, monkeypatch):
    path = write(tmp_path / "w", kind)
    monkeypatch.setattr(checkpoints.files.lazy, "read_tensors", pytest.fail)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.label, checkpoint.header.kind) == (str(path), kind)
    assert {name: one.shape for name, one in checkpoint.header.tensors.items()} == {"a": (3, 4), "b": (2,)}
    assert open_checkpoint(checkpoint) is checkpoint


def test_a_dictionary_is_opened_like_a_file():
    checkpoint = open_checkpoint({"control_model.a": torch.ones(2, 3)}, "mine")
    assert (checkpoint.label, checkpoint.path, checkpoint.parts) == ("mine", None, {"control_model."})
    assert checkpoint.header.tensors["control_model.a"].shape == (2, 3)
    assert list(checkpoint.weights().state) == ["control_model.a"]
    assert not checkpoint.is_quantized
    assert checkpoint.pruning is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.diffusion_model.out.0.bias", "model.diffusion_model."),
        ("input_hint_block.0.weight", "control_model."),
        ("controlnet_mid_block.weight", "control_model."),
        ("decoder.up_blocks.0.resnets.0.norm1.weight", "first_stage_model."),
        ("some.other.name", None),
    ],
)
def test_its_parts_are_told_by_names_of_any_form(name, part):
    assert open_checkpoint({name: torch.ones(1)}).parts == ({part} if part else set())


def test_what_was_left_out_is_counted_with_its_reason(tmp_path):
    saved = {"state_dict": {"model.x": torch.ones(1), "model_ema.x": torch.zeros(1)}, "epoch": 3}
    torch.save(saved, tmp_path / "last.ckpt")
    checkpoint = open_checkpoint(tmp_path / "last.ckpt")
    plain, averaged = checkpoint.weights(), checkpoint.weights(use_ema=True)
    assert (read(plain.state["model.x"]), read(averaged.state["model.x"])) == (1, 0)
    assert (plain.averaged, averaged.averaged) == (0, 1)
    assert sorted(plain.dropped.values()) == [1, 1]
    assert list(averaged.dropped) == [TRAINER_STATE]


def test_a_file_says_that_it_is_quantized_or_pruned(tmp_path):
    record = Record("tiny.yaml", counts={"layer": 3})
    save_file(WEIGHTS, tmp_path / "p.safetensors", {PRUNE_KEY: record.to_json(), QUANTIZE_KEY: "{}"})
    checkpoint = open_checkpoint(tmp_path / "p.safetensors")
    assert checkpoint.is_quantized
    assert checkpoint.pruning == record
    save_file(WEIGHTS, tmp_path / "new.safetensors", {PRUNE_KEY: '{"version": 99}'})
    with pytest.raises(ValueError, match="new.safetensors is pruned in format 99"):
        _ = open_checkpoint(tmp_path / "new.safetensors").pruning


def test_names_in_dictionaries_that_share_their_entries_come_to_an_end(tmp_path):
    inner = {str(number): number for number in range(100)}
    for _ in range(3):
        inner = dict.fromkeys(map(str, range(100)), inner)  # 100 million names in a few kilobytes
    torch.save(inner, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds no tensors, only 0\.0\.0\.0, "):
        open_checkpoint(tmp_path / "w.pth").tensors()
