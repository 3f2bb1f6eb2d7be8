"""Weights from codes to float32 in one walk over memory, for layers whose inputs stay float.

By the native library where there is one, else by the formulas of `quantize.arithmetic`: equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantize import native
from quantize.arithmetic import dequantize_channels, dequantize_int4


def decode_int8(codes: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """int8 codes [out, ...] and float32 scales [out] -> float32 of `shape`, which is that of the codes."""
    kernel = native.function("fw_decode_int8", "pplllp") if _readable(codes) else None
    if kernel is None or scale.dtype != torch.float32:
        return dequantize_channels(codes, scale)
    out, scale = torch.empty(tuple(shape)), scale.contiguous()
    rows, threads = len(codes), torch.get_num_threads()
    kernel(codes.data_ptr(), scale.data_ptr(), rows, codes.numel() // rows, threads, out.data_ptr())
    return out


def decode_int4(packed: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """What `arithmetic.quantize_int4` made of a weight of `shape` -> float32 of that shape."""
    kernel = native.function("fw_decode_int4", "pplllllp") if _readable(packed) else None
    if kernel is None or scale.dtype != torch.bfloat16:
        return dequantize_int4(packed, scale, shape)
    out, scale = torch.empty(tuple(shape)), scale.contiguous()
    rows, groups, half = packed.shape
    sizes = rows, groups, 2 * half, math.prod(shape[1:])
    kernel(packed.data_ptr(), scale.data_ptr(), *sizes, torch.get_num_threads(), out.data_ptr())
    return out


def _readable(codes: Tensor) -> bool:
    return codes.device.type == "cpu" and codes.is_contiguous() and codes.numel() > 0


DECODERS = {"int8": decode_int8, "int4": decode_int4}  # by the codes of `quantize.schemes`
