"""Weights files written tensor by tensor: a model need never be in memory as a whole.

Lazy tensors are read as their turn comes. A file appears under its name only when it is complete; until then
it grows under a hidden name beside it. The same tensors give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from ldm.lazy import Values, raw_bytes, walk
from ldm.torch_zip import write_torch_zip

STORED_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
SAFETENSORS = ".safetensors"
NESTED = {".ckpt": "state_dict", ".pth": None, ".pt": None, ".bin": None}  # of torch: where its tensors lie
SUFFIXES = (SAFETENSORS, *NESTED)
HEADER_ALIGNMENT = 8
MIB = 2**20

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
    with draft(path) as part, part.open("xb") as file:
        if path.suffix == SAFETENSORS:
            _write_safetensors(file, tensors, {"format": "pt", **(metadata or {})}, on_bytes)
        else:
            write_torch_zip(file, tensors, NESTED[path.suffix], on_bytes)
        file.flush()
        os.fsync(file.fileno())
    return path


def check_space(path: Path, size: int) -> None:
    """OSError unless `size` bytes more have room where `path` is to be."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{path} needs {size / MIB:.0f} MiB, but {free / MIB:.0f} MiB are free in {folder}")


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for a file or folder to be made; takes its place at the end, or goes.

    OSError in one sentence that names `path`.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    old = part.with_suffix(".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_dir() and path.is_dir():  # a folder that is not empty cannot be replaced in one step
            path.rename(old)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} was not written: {error.strerror or error}") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (part, old):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Values], metadata: Mapping[str, str], on_bytes: Progress | None
) -> None:
    # The widest types first, so that every tensor begins at a multiple of its type's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in STORED_NAMES:
            raise ValueError(f"{name}: {tensor.dtype} is a type that {SAFETENSORS} cannot hold")
        span = [offset, offset := offset + tensor.nbytes]
        kind = STORED_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in walk(ordered):
        file.write(raw_bytes(tensor))
        if on_bytes:
            on_bytes(tensor.nbytes)
        del tensor  # else it would live until the next one is read
