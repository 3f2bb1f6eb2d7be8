"""Lazy tensors: the same numbers as at once, read late, with mappings given up between pieces."""

import pytest
import torch

import checkpoints.files.lazy
from checkpoints.files.lazy import LazyTensor, MappedFile, by_rows, lazy, read, walk


class Counted:
    """A file of three tensors that counts how often it was opened."""

    def __init__(self):
        self.opened = 0
        noise = torch.Generator().manual_seed(0)
        self.state = {name: torch.randn(6, 4, generator=noise) for name in "abc"}

    def __call__(self):
        self.opened += 1
        return dict(self.state)


@pytest.fixture
def file():
    return Counted()


OPERATIONS = {
    "slice": lambda a, b: a[2:4],
    "axes": lambda a, b: a[:, :, None, None],
    "cat": lambda a, b: torch.cat([a, b, a]),
    "offset": lambda a, b: torch.add(a, torch.sub(b, a)),
    "half": lambda a, b: a.to(torch.float16),
    "zeros": lambda a, b: torch.zeros_like(a),
    "chain": lambda a, b: torch.cat([a[:2], b[2:]]).to(torch.bfloat16)[1],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_lazy_tensors_gives_the_same_bits_later(file, name):
    mapped = MappedFile(file(), file).lazy()
    expected = OPERATIONS[name](file.state["a"], file.state["b"])
    got = OPERATIONS[name](mapped["a"], mapped["b"])
    assert isinstance(got, LazyTensor)
    assert (got.shape, got.dtype, got.nbytes) == (expected.shape, expected.dtype, expected.nbytes)
    assert len(got) == len(expected)
    assert torch.equal(got.read(), expected)


def test_shapes_and_operations_read_nothing():
    never = LazyTensor(torch.empty(3, 2, device="meta"), pytest.fail, frozenset(), 24)
    assert torch.cat([never[1:], never]).to(torch.float16).shape == (5, 2)


def test_a_walk_opens_the_file_anew_for_each_piece(file, monkeypatch):
    mapped = MappedFile(file(), file).lazy()
    assert dict(walk(mapped.items())).keys() == file.state.keys()
    assert file.opened == 1
    monkeypatch.setattr(checkpoints.files.lazy, "PIECE_BYTES", mapped["a"].nbytes)
    assert all(torch.equal(tensor, file.state[name]) for name, tensor in walk(mapped.items()))
    assert file.opened == 1 + len(file.state)  # the first walk had given up the first mapping


def test_a_piece_counts_what_is_read_not_what_comes_out(file, monkeypatch):
    mapped = MappedFile(file(), file).lazy()
    both = {"sum": torch.add(mapped["a"], mapped["b"]), "head": mapped["c"][:1]}
    monkeypatch.setattr(checkpoints.files.lazy, "PIECE_BYTES", 2 * mapped["a"].nbytes)
    for _ in walk(both.items()):
        pass
    assert file.opened == 2


def move(a, b):
    return (a + 2 * b).half()


@pytest.mark.parametrize("row_bytes", [1, 40, 1 << 20])
def test_rows_at_a_time_give_the_same_bits_with_the_file_opened_anew(file, monkeypatch, row_bytes):
    mapped = MappedFile(file(), file).lazy()
    monkeypatch.setattr(checkpoints.files.lazy, "ROWS_BYTES", row_bytes)
    got = by_rows(move, torch.float16, mapped["a"], mapped["b"])
    assert (got.shape, got.dtype) == (file.state["a"].shape, torch.float16)
    assert file.opened == 1
    assert torch.equal(got.read(), move(file.state["a"], file.state["b"]))
    assert (file.opened > 1) == (row_bytes < 1 << 20)


def test_what_is_not_lazy_is_changed_at_once(file):
    a, b = file.state["a"], file.state["b"]
    assert torch.equal(by_rows(move, torch.float16, a, b), move(a, b))
    scalar = LazyTensor(torch.empty((), device="meta"), lambda: torch.tensor(3.0), frozenset(), 1 << 40)
    assert by_rows(torch.neg, torch.float32, scalar).read() == -3


def test_plain_tensors_walk_too(file):
    tensors = {"x": torch.ones(2), "y": MappedFile(file(), file).lazy()["a"]}
    assert torch.equal(dict(walk(tensors.items()))["x"], tensors["x"])
    assert read(tensors["x"]) is tensors["x"]
    assert read(lazy(tensors["x"])) is tensors["x"]
    assert lazy(tensors["y"]) is tensors["y"]
    assert torch.equal(read(tensors["y"]), file.state["a"])
