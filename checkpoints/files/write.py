"""Weights files written tensor by tensor: a model need never be in memory as a whole.

Lazy tensors are read as their turn comes, which neither torch's nor safetensors' own writer can do: both want
all of them at once. The same tensors give the same bytes. torch's format is an uncompressed zip archive:
`data.pkl`, a pickle that names tensors by number, and one member for each tensor's bytes, which `torch.load`
maps and every zip program can check.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from checkpoints.files.lazy import Values, raw_bytes, walk
from common.atomic import atomic_write, check_space
from common.safetensors_header import safetensors_header

SAFETENSORS = ".safetensors"
NESTED = {".ckpt": "state_dict", ".pth": None, ".pt": None, ".bin": None}  # of torch: where its tensors lie
SUFFIXES = (SAFETENSORS, *NESTED)
STORAGES = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}  # fmt: skip
PICKLE_PROTOCOL = 2  # torch's own
TORCH_VERSION = b"3\n"  # of its format
ALIGNMENT = 64  # bytes, torch's own: members begin at its multiples
LOCAL_HEADER = 30  # bytes of a zip member's header before its name
FILLER = b"FB"  # name of the header field that fills up to the alignment
FILLER_HEADER = 4  # bytes: its name and its length, two each
ZIP_ROOT = "archive"  # torch's own default; readers take any

Progress = Callable[[int], None]  # hears how many bytes more are written


def write_weights(
    path: str | Path,
    tensors: Mapping[str, Values],
    *,
    metadata: Mapping[str, str] | None = None,
    on_bytes: Progress | None = None,
) -> Path:
    """Write a .safetensors, .ckpt, .pth, .pt or .bin file, as the suffix says; it replaces an older one.

    metadata: of safetensors only. Raises ValueError for another suffix or a dtype that the format cannot
    hold, OSError in one sentence when the disk is full or closed to us.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: use {', '.join(SUFFIXES)} as the suffix")
    check_space(path, sum(tensor.nbytes for tensor in tensors.values()))
    with atomic_write(path) as partial, partial.open("xb") as file:
        if path.suffix == SAFETENSORS:
            _write_safetensors(file, tensors, {"format": "pt", **(metadata or {})}, on_bytes)
        else:
            _write_torch_zip(file, tensors, NESTED[path.suffix], on_bytes)
    return path


def _write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Values], metadata: Mapping[str, str], on_bytes: Progress | None
) -> None:
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    header, spans, _ = safetensors_header(layout, dict(sorted(metadata.items())))
    file.write(header)  # known before the first tensor is read
    for _, tensor in walk((name, tensors[name]) for name in spans):
        file.write(raw_bytes(tensor))
        if on_bytes:
            on_bytes(tensor.nbytes)
        del tensor  # else it would live until the next one is read


def _write_torch_zip(
    file: BinaryIO, tensors: Mapping[str, Values], nested: str | None, on_bytes: Progress | None
) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in STORAGES:
            raise ValueError(f"{name}: {tensor.dtype} is a type that only .safetensors files hold")
    named = {name: _Entry(number, tensor) for number, (name, tensor) in enumerate(tensors.items())}
    pickled = io.BytesIO()
    _Pickler(pickled, PICKLE_PROTOCOL).dump({nested: named} if nested else named)
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", pickled.getbuffer())
        _add(archive, "byteorder", sys.byteorder.encode())
        for name, tensor in walk(tensors.items()):  # not enumerate: it keeps its last item
            _add(archive, f"data/{named[name].number}", raw_bytes(tensor))
            if on_bytes:
                on_bytes(tensor.nbytes)
            del tensor  # else it would live until the next one is read
        _add(archive, "version", TORCH_VERSION)


class _Storage(tuple):
    """Stands in the pickle for the member `data/<number>`."""


class _Entry:
    """Stands in the pickle for a tensor, as torch writes one: how to build it from its storage."""

    def __init__(self, number: int, tensor: Values) -> None:
        self.number = number
        shape = tuple(tensor.shape)
        stride = torch.empty(shape, device="meta").stride()  # of contiguous values, as they are written
        storage = _Storage(("storage", STORAGES[tensor.dtype], str(number), "cpu", tensor.shape.numel()))
        self.parts = (storage, 0, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.parts


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        return tuple(value) if isinstance(value, _Storage) else None


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ZIP_ROOT}/{name}")
    info.file_size = len(content)  # decides on the wide form of the header, which 2 GiB and more need
    start = archive.start_dir + LOCAL_HEADER + len(info.filename) + FILLER_HEADER
    gap = -start % ALIGNMENT  # so that torch can map what is behind it
    info.extra = struct.pack("<2sH", FILLER, gap) + bytes(gap)
    with archive.open(info, "w") as member:
        member.write(content)
