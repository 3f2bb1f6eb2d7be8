"""Activations to bytes on a GPU: the faces of the kernels in `quantize_input`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from quantize.activations import QParams, Quantized
from quantize.arithmetic import FP8
from quantize.triton import quantize_input

BLOCK = 2048  # values a program has at once
MAX_PARTS = 512  # programs that look for extremes: some for every multiprocessor, few enough to join at once
WARPS = 8


class Ranges(NamedTuple):
    """Ranges from calibration, on the GPU.

    scale: float32 [n]; zero: int32 [n], in [0, 255]; at: int32 [1], which of them holds now, None for the
    first.
    """

    scale: Tensor
    zero: Tensor
    at: Tensor | None = None


class CudaQuantized(Quantized):
    """Signed bytes: codes int8, the qparams in tensors of one number. dtype: that of the floats before."""

    dtype: torch.dtype

    @classmethod
    def of(cls, values: Tensor, qparams: QParams, dtype: torch.dtype) -> CudaQuantized:
        """These bytes of floats of `dtype`."""
        made = cls(values, qparams)
        made.dtype = dtype
        return made


class Modulation(NamedTuple):
    """What becomes of x [b, ..., c] on its way: x * gain + shift, float32 [b, c] each, then perhaps SiLU."""

    gain: Tensor
    shift: Tensor
    silu: bool


def quantize(x: Tensor, ranges: Ranges | None = None) -> CudaQuantized:
    """x of any shape and dense memory format -> signed bytes of the same; ranges None: by its own extremes.

    Nothing waits for the GPU.
    """
    x = dense(x)
    with torch.cuda.device_of(x):
        return write(x, None, ranges, None if ranges else _extremes(x))


def write(x: Tensor, change: Modulation | None, ranges: Ranges | None, parts: Tensor | None) -> CudaQuantized:
    """Signed bytes of what `change` makes of x, which then lies channels last.

    By `ranges`, or by the extremes `parts` [2, n], before SiLU.
    """
    values, qparams = torch.empty_like(x, dtype=torch.int8), new_qparams(x)
    gain, shift, silu = change or (None, None, False)
    channels, image = (1, 1) if change is None else (gain.shape[1], x[0].numel())
    programs, at_once = joined(parts)
    quantize_input.write_bytes[(triton.cdiv(x.numel(), BLOCK),)](
        x, gain, shift, values, *qparams, parts, programs, *(ranges or Ranges(None, None)), x.numel(),
        channels, image, SILU=silu, PARTS=at_once, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return CudaQuantized.of(values, qparams, x.dtype)


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x -> float8_e4m3fn of its shape by its largest magnitude, and the scale float32 [1]."""
    x = dense(x)
    values, scale = torch.empty_like(x, dtype=FP8), torch.empty(1, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        parts = _extremes(x)
        programs, at_once = joined(parts)
        quantize_input.write_fp8[(triton.cdiv(x.numel(), BLOCK),)](
            x, values, scale, parts, programs, x.numel(), PARTS=at_once, BLOCK=BLOCK, num_warps=WARPS
        )
    return values, scale


def signed(x: Quantized) -> Quantized:
    """Bytes of any maker as `quantize` has them: int8 codes, the qparams in tensors on their device."""
    values, (scale, zero) = x
    device = values.device
    if not isinstance(scale, Tensor):
        scale = torch.full((1,), scale, dtype=torch.float32, device=device)
        zero = torch.full((1,), zero, dtype=torch.int32, device=device)
    if values.dtype == torch.uint8:
        values, zero = (values ^ 128).view(torch.int8), zero - 128
    return Quantized(values, QParams(scale, zero))


def dense(x: Tensor) -> Tensor:
    """x, copied where its numbers do not fill their memory without gaps."""
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else x.contiguous()


def new_qparams(x: Tensor) -> QParams:
    """Room for a scale and a zero point; their tensors stand where an `QParams` of the CPU has numbers."""
    return QParams(
        torch.empty(1, dtype=torch.float32, device=x.device),
        torch.empty(1, dtype=torch.int32, device=x.device),
    )


def joined(parts: Tensor | None) -> tuple[int, int]:
    """How many parts there are, and how many are read at once."""
    count = 1 if parts is None else parts.shape[1]
    return count, triton.next_power_of_2(count)


def _extremes(x: Tensor) -> Tensor:
    programs = min(MAX_PARTS, triton.cdiv(x.numel(), BLOCK))
    parts = torch.empty((2, programs), dtype=torch.float32, device=x.device)
    quantize_input.find_extremes[(programs,)](x, parts, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return parts
