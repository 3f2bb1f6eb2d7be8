"""Weights files written tensor by tensor: a model need never be in memory as a whole.

Lazy tensors are read as their turn comes, which neither torch's nor safetensors' own writer can do: both want
all of them at once. A file appears under its name only when it is complete; until then it grows under a
hidden name beside it. The same tensors give the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from checkpoints.files.lazy import Values, raw_bytes, walk
from checkpoints.files.write_torch import write_torch_zip
from common.atomic import atomic_write, check_space

STORED_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
SAFETENSORS = ".safetensors"
NESTED = {".ckpt": "state_dict", ".pth": None, ".pt": None, ".bin": None}  # of torch: where its tensors lie
SUFFIXES = (SAFETENSORS, *NESTED)
HEADER_ALIGNMENT = 8

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
            write_torch_zip(file, tensors, NESTED[path.suffix], on_bytes)
    return path


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
