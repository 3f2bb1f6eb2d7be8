"""A header tells what a file holds, agrees with what loads, and is believed no further than its file goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.headers import MAX_HEADER_BYTES, TensorHeader, nested_names, read_header
from tests.hostile_files import entry, write_safetensors
from tests.stored_tensors import stored_tensors

ROOT = Path(__file__).parents[3]
WEIGHTS = {
    "a": torch.randn(3, 4),
    "b": torch.ones(2).half(),
    "c": torch.ones(5).bfloat16(),
    "n": torch.tensor(7),
}


def write(path, kind, state=WEIGHTS):
    if kind == "safetensors":
        save_file(state, path, {"modelspec.title": "x"})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_header_says_what_loads(tmp_path, kind):
    header = read_header(write(tmp_path / "w", kind))
    loaded = stored_tensors(tmp_path / "w")
    assert header.kind == kind
    assert header.size == (tmp_path / "w").stat().st_size
    assert set(header.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert header.tensors[name].shape == tuple(tensor.shape)
        assert header.tensors[name].nbytes == tensor.nbytes
        assert header.tensors[name].count == tensor.numel()
    assert {one.dtype for one in header.tensors.values()} == {"F32", "F16", "BF16", "I64"}
    assert header.metadata == ({"modelspec.title": "x"} if kind == "safetensors" else {})


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_lies_beside_the_weights_is_named_with_its_size(tmp_path, kind):
    momentum = torch.zeros(100)
    saved = {
        "state_dict": WEIGHTS,
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"m": momentum, "v": momentum}}}],
    }
    saved["loops"] = saved["optimizer_states"]
    header = read_header(write(tmp_path / "last.ckpt", kind, saved))
    assert set(header.tensors) == set(WEIGHTS)
    assert header.others == {"epoch": 0, "optimizer_states": 400, "loops": 400}


def test_names_of_nested_dictionaries_are_joined(tmp_path):
    saved = {
        "image_proj": {"proj.weight": torch.ones(1)},
        "ip_adapter": {"1.to_k_ip.weight": torch.ones(1)},
        "x": {},
    }
    header = read_header(write(tmp_path / "ip.bin", "zip", saved))
    assert header.nested == ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "x")
    assert not header.tensors


def test_a_dictionary_within_itself_ends():
    ring = {}
    ring["a"] = ring
    assert list(nested_names(ring)) == ["a.a.a.a"]


BROKEN = {
    "its header claims 1152921504606846976 bytes": ({}, b"", 2**60),
    f"its header claims {MAX_HEADER_BYTES + 1} bytes": ({}, b"", MAX_HEADER_BYTES + 1),
    "cut short": ({"a": entry()}, b"12", None),
    "cut short, fetch it again: invalid header": ({}, b"", 1000),
    "not fully covered": ({"a": entry()}, b"123456", None),
    "names a twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"1234", None),
    "duplicate field": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
        None,
    ),
    "offset for tensor `[ab]`": ({"a": entry(), "b": entry()}, b"1234", None),
    "invalid offset for tensor .b": ({"a": entry(), "b": entry((1,), 8, 12)}, b"123412341234", None),
    "offset": ({"a": entry((1,), 2**62, 2**62 + 4)}, b"1234", None),
    "integer `-1`, expected usize": ({"a": entry((-1,))}, b"1234", None),
    "overflow": ({"a": entry((2**62, 4))}, b"1234", None),
    "unknown variant `F33`": ({"a": entry(dtype="F33")}, b"1234", None),
    "expected string or map": ({"a": [1]}, b"", None),
    "damaged": ({"a": entry((2,))}, b"1234", None),
    "recursion limit": (b'{"a":' * 10_000, b"", None),
    "recursion limit exceeded": (b'{"a":' + b"[" * 100_000, b"", None),
    "expected a string": ({"__metadata__": {"a": 1}}, b"", None),
    "EOF|invalid": (b'{"a', b"", None),
    "invalid utf-8": (b'{"\xff":1}', b"", None),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_header_that_lies_is_refused_in_one_sentence(tmp_path, message):
    header, data, length = BROKEN[message]
    path = write_safetensors(tmp_path / "w.safetensors", header, data, length)
    for read in (read_header, open_checkpoint):
        with pytest.raises(ValueError, match=message) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path} is damaged")
        assert "\n" not in str(raised.value)


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=0, max_size=9), cut=st.booleans())
def test_damaged_and_cut_safetensors_end_in_a_sentence_or_whole(tmp_path_factory, place, value, cut):
    whole = save(WEIGHTS)
    at = int(len(whole) * place)
    path = tmp_path_factory.getbasetemp() / "bad.safetensors"
    path.write_bytes(whole[:at] if cut else whole[:at] + value + whole[at + len(value) :])
    try:
        tensors = stored_tensors(path)
    except ValueError as refusal:
        error = str(refusal)
    else:
        assert not cut
        assert len(tensors) == len(read_header(path).tensors) == len(WEIGHTS)
        return
    assert error.startswith(f"{path} is ")
    assert "\n" not in error


def sparse_file(path, gigabytes):
    """A file whose one tensor is a hole: large to read, nothing on the disk."""
    size = gigabytes << 30
    write_safetensors(path, {"first_stage_model.w": entry((size // 4,), 0, size)})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    return path


MEASURE = """
import resource, sys
from pathlib import Path
from checkpoints.files.headers import read_header
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
header = read_header(Path(sys.argv[1]))
assert "torch" not in sys.modules
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(header.tensors["first_stage_model.w"].nbytes, after - before)
"""


def test_gigabytes_cost_no_memory_and_no_torch(tmp_path):
    path = sparse_file(tmp_path / "big.safetensors", 6)
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    size, grown = map(int, done.stdout.split())
    assert size == 6 << 30
    assert grown < 30 << 10, "kilobytes"


def test_the_header_of_a_tensor_counts_its_numbers():
    assert TensorHeader("F16", (3, 4), 24).count == 12
    assert TensorHeader("I64", (), 8).count == 1
