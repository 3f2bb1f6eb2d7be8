"""Weights files written tensor by tensor: a model need never be in memory as a whole.

Lazy tensors are read as their turn comes, which neither torch's nor safetensors' own writer can do: both want
all of them at once. A file appears under its name only when it is complete; until then it grows under a
hidden name beside it. The same tensors give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from checkpoints.files.lazy import Values, raw_bytes, walk
from checkpoints.files.write_torch import write_torch_zip
from common.atomic import atomic_write, check_space
from common.safetensors_header import safetensors_header

SAFETENSORS = ".safetensors"
NESTED = {".ckpt": "state_dict", ".pth": None, ".pt": None, ".bin": None}  # of torch: where its tensors lie
SUFFIXES = (SAFETENSORS, *NESTED)

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
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    header, spans, _ = safetensors_header(layout, dict(sorted(metadata.items())))
    file.write(header)
    for _, tensor in walk((name, tensors[name]) for name in spans):
        file.write(raw_bytes(tensor))
        if on_bytes:
            on_bytes(tensor.nbytes)
        del tensor  # else it would live until the next one is read
