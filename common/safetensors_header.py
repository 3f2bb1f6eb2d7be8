"""The first bytes of a safetensors file, known before the first number: tensors can be written one by one.

The library's own writer wants all of them in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence

import torch

STORED_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNMENT = 8
LENGTH_FORMAT = "<Q"  # of what the header's length is written in

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]  # tensors of a file by name
Spans = dict[str, tuple[int, torch.dtype, list[int]]]  # tensor -> its place in the file, and what it is


def nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Of a tensor that need not be there."""
    return dtype.itemsize * math.prod(shape)


def safetensors_header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, Spans, int]:
    """The file's first bytes, where each tensor goes, in order, and the size of the file.

    Raises ValueError for a type that safetensors cannot hold.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    places, offset = {}, 0  # counted from the first tensor's
    # The widest types first, so that every tensor begins at a multiple of its type's size.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        if dtype not in STORED_NAMES:
            raise ValueError(f"{name}: {dtype} is a type that .safetensors cannot hold")
        end = offset + nbytes(dtype, shape)
        header[name] = {"dtype": STORED_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        places[name], offset = (offset, dtype, list(shape)), end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    first = struct.pack(LENGTH_FORMAT, len(text)) + text
    spans = {name: (len(first) + place, *kind) for name, (place, *kind) in places.items()}
    return first, spans, len(first) + offset
