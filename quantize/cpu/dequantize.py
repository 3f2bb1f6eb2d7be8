"""Quantized weights to float32 in one pass over memory, for layers whose inputs stay float.

By the native library where there is one, else by the formulas of `quantize.arithmetic`: equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantize import arithmetic, native


def dequantize_int8(values: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """int8 values [out, ...] and float32 scales [out] -> float32 of `shape`, which is that of the values."""
    kernel = native.function("fw_dequantize_int8", "pplllp") if _readable(values) else None
    if kernel is None or scale.dtype != torch.float32:
        return arithmetic.dequantize_channels(values, scale)
    out, scale = torch.empty(tuple(shape)), scale.contiguous()
    rows, threads = len(values), torch.get_num_threads()
    kernel(values, scale, rows, values.numel() // rows, threads, out)
    return out


def dequantize_int4(packed: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """What `arithmetic.quantize_int4` made of a weight of `shape` -> float32 of that shape."""
    kernel = native.function("fw_dequantize_int4", "pplllllp") if _readable(packed) else None
    if kernel is None or scale.dtype != torch.bfloat16:
        return arithmetic.dequantize_int4(packed, scale, shape)
    out, scale = torch.empty(tuple(shape)), scale.contiguous()
    rows, groups, half = packed.shape
    sizes = rows, groups, 2 * half, math.prod(shape[1:])
    kernel(packed, scale, *sizes, torch.get_num_threads(), out)
    return out


def _readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.is_contiguous() and values.numel() > 0


DEQUANTIZERS = {"int8": dequantize_int8, "int4": dequantize_int4}  # by the weights of `quantize.schemes`
