"""Files written tensor by tensor read back bit for bit, by the libraries too; a failure leaves nothing."""

import errno
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import checkpoints.files.lazy
import common.atomic
from checkpoints.files.lazy import MappedFile
from checkpoints.files.write import write_weights
from common.atomic import atomic_write
from tests.stored_tensors import stored_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth", ".bin"])


@pytest.fixture
def state():
    noise = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype).removeprefix("torch."): torch.randn(3, 5, generator=noise).to(dtype) for dtype in FLOATS
    }
    for dtype in INTEGERS:
        tensors[str(dtype).removeprefix("torch.")] = torch.randint(0, 100, (7,), generator=noise).to(dtype)
    tensors["bool"] = torch.tensor([True, False, True])
    tensors["scalar"] = torch.tensor(0.9999)
    tensors["empty"] = torch.empty(0, 4)
    tensors["turned"] = torch.randn(4, 6, generator=noise).T
    tensors["nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    return tensors


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        one, other = (x.contiguous().reshape(-1).view(torch.uint8) for x in (got[name], tensor))
        assert torch.equal(one, other), name


@SUFFIXES
def test_what_is_written_reads_back_bit_for_bit(tmp_path, state, suffix):
    write_weights(tmp_path / f"w{suffix}", state)
    assert_same_bits(stored_tensors(tmp_path / f"w{suffix}"), state)


@SUFFIXES
def test_the_libraries_read_it_too(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    write_weights(path, state)
    if suffix == ".safetensors":
        assert_same_bits(load_file(path), state)
    else:
        saved = torch.load(path, weights_only=True)
        assert_same_bits(saved["state_dict"] if suffix == ".ckpt" else saved, state)
        assert list(stored_tensors(path)) == list(state)  # in order: optimizer states are indexed by it


def test_lazy_tensors_are_written_piece_by_piece(tmp_path, state, monkeypatch):
    opened = []
    file = MappedFile(state, lambda: opened.append(1) or state)
    monkeypatch.setattr(checkpoints.files.lazy, "PIECE_BYTES", 1)
    write_weights(tmp_path / "w.ckpt", file.lazy())
    assert len(opened) > len(state) / 2
    assert_same_bits(stored_tensors(tmp_path / "w.ckpt"), state)


def test_every_tensor_of_either_format_lies_where_its_type_wants_it(tmp_path, state):
    odd = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3, dtype=torch.float64), **state}
    for suffix in (".safetensors", ".pth"):
        write_weights(tmp_path / f"w{suffix}", odd)
        for tensor in stored_tensors(tmp_path / f"w{suffix}").values():
            assert tensor.data_ptr() % tensor.element_size() == 0


def test_the_zip_archive_is_whole_for_any_zip_program(tmp_path, state):
    write_weights(tmp_path / "w.pth", state)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        assert archive.testzip() is None  # sums of every member
    assert stored_tensors(tmp_path / "w.pth").keys() == state.keys()


def test_the_same_tensors_give_the_same_bytes(tmp_path, state):
    for suffix in (".safetensors", ".ckpt"):
        paths = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
        for path in paths:
            write_weights(path, state, metadata={"b": "2", "a": "1"})
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_metadata_says_what_a_safetensors_file_is(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)}, metadata={"modelspec.title": "한글"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "한글"}


def test_progress_counts_every_byte(tmp_path, state):
    counted = []
    write_weights(tmp_path / "w.ckpt", state, on_bytes=counted.append)
    assert sum(counted) == sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize(("name", "match"), [("w.npz", "use .safetensors, "), ("w", "use .safetensors")])
def test_another_suffix_is_refused(tmp_path, name, match):
    with pytest.raises(ValueError, match=match):
        write_weights(tmp_path / name, {"a": torch.ones(1)})


def test_a_dtype_that_a_format_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x: .*complex64 .*cannot hold"):
        write_weights(tmp_path / "w.safetensors", {"x": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match=r"x: .*float8_e4m3fn .*\.safetensors"):
        write_weights(tmp_path / "w.ckpt", {"x": torch.ones(1).to(torch.float8_e4m3fn)})
    assert not list(tmp_path.iterdir())


@SUFFIXES
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, state, suffix, error):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"old")

    def fail(_):
        raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError) as raised:
        write_weights(path, state, on_bytes=fail)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path} was not written: No space left on device"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(common.atomic.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"w.ckpt needs 4 MiB, but 0 MiB are free"):
        write_weights(tmp_path / "w.ckpt", {"a": torch.ones(1 << 20)})
    assert not list(tmp_path.iterdir())


def fill(target, text, error=None):
    with atomic_write(target) as folder:
        folder.mkdir()
        (folder / text).write_text(text)
        if error:
            raise error


def test_a_folder_is_swapped_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for text in ("one", "two"):
        fill(target, text)
        assert [file.name for file in target.iterdir()] == [text]
    with pytest.raises(KeyboardInterrupt):
        fill(target, "three", KeyboardInterrupt)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "two"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path, state):
    fill(tmp_path / "w.ckpt", "one")
    with pytest.raises(OSError, match=r"w.ckpt was not written: Is a directory"):
        write_weights(tmp_path / "w.ckpt", state)
    assert [file.name for file in tmp_path.rglob("*")] == ["w.ckpt", "one"]
