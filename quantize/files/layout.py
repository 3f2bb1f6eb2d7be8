"""Where each tensor of a quantized file goes: from names, shapes and plan, before the first number is read.

In narrow files what stays float is half precision: 11 bits, exact for weights published so. Scales of int8
and fp8 are bfloat16, exact too, since `quantize.arithmetic` rounds them before it picks the codes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from quantize.selection import Plan
from quantize.spec import LayerSpec, Ranges

STORED_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
HEADER_ALIGNMENT = 8

Layout = Mapping[str, tuple[torch.dtype, list[int]]]  # tensors of a file by name
Spans = dict[
    str, tuple[int, torch.dtype, list[int]]
]  # name of a tensor -> its place in the file, and what it is


def specs_of(model: nn.Module, plan: Plan, ranges: Mapping[str, Ranges]) -> dict[str, LayerSpec]:
    """What the layers of a plan become, by name."""
    return {
        name: LayerSpec.of(model.get_submodule(name), scheme, len(ranges.get(name, [()])))
        for name, scheme in plan.layers.items()
    }


def parameters_of(model: nn.Module) -> set[str]:
    """Names of all tensors that training changes, shared ones under each of their names."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def layout_of(model: nn.Module, specs: Mapping[str, LayerSpec], *, narrow: bool) -> Layout:
    """The tensors of the file that holds `model` with layers of `specs`. narrow: see above."""
    layout, parameters = {}, parameters_of(model)
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in specs and leaf == "weight":
            for part, (shape, dtype) in specs[owner].shapes().items():
                kept = torch.bfloat16 if narrow and part == "scale" else dtype
                layout[f"{owner}.{part}"] = (kept, list(shape))
        else:
            halved = narrow and name in parameters and tensor.dtype == torch.float32
            layout[name] = (torch.float16 if halved else tensor.dtype, list(tensor.shape))
    return layout


def nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Of a tensor that need not be there."""
    return dtype.itemsize * math.prod(shape)


def header_of(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, Spans, int]:
    """The file's first bytes, where each tensor goes, and the size of the file.

    Raises ValueError for a type that safetensors cannot hold.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    places, offset = {}, 0
    # The widest types first, so that every tensor begins at a multiple of its type's size.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        if dtype not in STORED_NAMES:
            raise ValueError(f"{name}: {dtype} is a type that safetensors cannot hold")
        places[name] = offset
        end = offset + nbytes(dtype, shape)
        header[name] = {"dtype": STORED_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    start = struct.calcsize("<Q") + len(text)
    spans = {name: (start + places[name], *layout[name]) for name in layout}
    return struct.pack("<Q", len(text)) + text, spans, start + offset
