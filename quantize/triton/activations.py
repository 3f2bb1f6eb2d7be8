"""Activations to bytes on a GPU: the faces of the kernels in `quantize_input` and `norms`.

Norms are as `quantize.cpu.activations` has them, up to the rounding of float sums, for signed bytes and
without waiting for the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor, nn

from quantize.activations import QParams, Quantized
from quantize.arithmetic import FP8
from quantize.triton import norms, quantize_input

BLOCK = 2048  # values a program has at once
MAX_PARTS = 512  # programs that look for extremes: some for every multiprocessor, few enough to join at once
WARPS = 8  # of 32 threads: 8 values each
TILE_VALUES = 4096  # of a group, that a program has at once
SPAN_TILES = 4  # tiles one after another: fewer parts to join
NORM_WARPS = 4  # 32 values a thread


class Ranges(NamedTuple):
    """Ranges from calibration, on the GPU."""

    scale: Tensor  # float32 [n]
    zero: Tensor  # int32 [n], in [0, 255]
    at: Tensor | None = None  # int32 [1], which of them holds now; None for the first


class CudaQuantized(Quantized):
    """Signed bytes: codes int8, the qparams in tensors of one number."""

    dtype: torch.dtype  # of the floats before

    @classmethod
    def of(cls, values: Tensor, qparams: QParams, dtype: torch.dtype) -> CudaQuantized:
        """These bytes of floats of `dtype`."""
        made = cls(values, qparams)
        made.dtype = dtype
        return made


class _Modulation(NamedTuple):
    """What becomes of x [b, ..., c] on its way: x * gain + shift, float32 each, then perhaps SiLU."""

    gain: Tensor  # [b, c]
    shift: Tensor  # [b, c]
    silu: bool


def quantize(x: Tensor, ranges: Ranges | None = None) -> CudaQuantized:
    """x of any shape and dense memory format -> signed bytes of the same; ranges None: by its own extremes.

    Nothing waits for the GPU.
    """
    x = _dense(x)
    with torch.cuda.device_of(x):
        return _write(x, None, ranges, None if ranges else _extremes(x))


def _write(
    x: Tensor, change: _Modulation | None, ranges: Ranges | None, parts: Tensor | None
) -> CudaQuantized:
    """Signed bytes of what `change` makes of x, which then lies channels last.

    By `ranges`, or by the extremes `parts` [2, n], before SiLU.
    """
    values, qparams = torch.empty_like(x, dtype=torch.int8), _new_qparams(x)
    gain, shift, silu = change or (None, None, False)
    channels, image = (1, 1) if change is None else (gain.shape[1], x[0].numel())
    programs, at_once = _joined(parts)
    quantize_input.write_bytes[(triton.cdiv(x.numel(), BLOCK),)](
        x, gain, shift, values, *qparams, parts, programs, *(ranges or Ranges(None, None)), x.numel(),
        channels, image, SILU=silu, PARTS=at_once, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return CudaQuantized.of(values, qparams, x.dtype)


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x -> float8_e4m3fn of its shape by its largest magnitude, and the scale float32 [1]."""
    x = _dense(x)
    values, scale = torch.empty_like(x, dtype=FP8), torch.empty(1, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        parts = _extremes(x)
        programs, at_once = _joined(parts)
        quantize_input.write_fp8[(triton.cdiv(x.numel(), BLOCK),)](
            x, values, scale, parts, programs, x.numel(), PARTS=at_once, BLOCK=BLOCK, num_warps=WARPS
        )
    return values, scale


def group_norm_quantize(
    norm: nn.GroupNorm, x: Tensor, ranges: Ranges | None, *, silu: bool, added: Tensor | None = None
) -> CudaQuantized:
    """Signed bytes, channels last, of the group norm of x [b, c, h, w] + added [b, c], and SiLU if asked."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    group, pixels = channels // norm.num_groups, height * width
    across = triton.next_power_of_2(group)
    tile = max(1, TILE_VALUES // across)
    span = tile * SPAN_TILES
    parts = triton.cdiv(pixels, span)
    floats = {"dtype": torch.float32, "device": x.device}
    stats = torch.empty((images * norm.num_groups, 3, parts), **floats)
    lows, highs = torch.empty((2, images, parts, channels), **floats)
    gain, shift = torch.empty((2, images, channels), **floats)
    ends = torch.empty((2, images * norm.num_groups), **floats)
    widths = {"WIDTH": across, "GROUP": group, "num_warps": NORM_WARPS}
    with torch.cuda.device_of(x):
        norms.look_at_groups[(images * norm.num_groups, parts)](
            x, added, stats, lows, highs, channels, pixels, span, PIXELS=tile, **widths
        )
        norms.finish_groups[(images * norm.num_groups,)](
            stats, lows, highs, norm.weight, norm.bias, added, gain, shift, ends, channels, parts, norm.eps,
            PARTS=triton.next_power_of_2(parts), **widths,
        )  # fmt: skip
        return _write(x, _Modulation(gain, shift, silu), ranges, None if ranges else ends)


def layer_norm_quantize(norm: nn.LayerNorm, x: Tensor, ranges: Ranges | None) -> CudaQuantized:
    """Signed bytes of the layer norm of x [..., d] over its last axis."""
    x = x.contiguous()
    depth = x.shape[-1]
    rows = x.numel() // depth
    values, qparams = torch.empty_like(x, dtype=torch.int8), _new_qparams(x)
    given = (x, norm.weight, norm.bias)
    widths = {"DEPTH": depth, "WIDTH": triton.next_power_of_2(depth), "num_warps": NORM_WARPS}
    with torch.cuda.device_of(x):
        parts = None
        if ranges is None:
            parts = torch.empty((2, min(MAX_PARTS, rows)), dtype=torch.float32, device=x.device)
            norms.look_at_rows[(parts.shape[1],)](*given, parts, rows, norm.eps, **widths)
        programs, at_once = _joined(parts)
        norms.write_rows[(rows,)](
            *given, values, *qparams, parts, programs, *(ranges or Ranges(None, None)), norm.eps,
            PARTS=at_once, **widths,
        )  # fmt: skip
    return CudaQuantized.of(values, qparams, x.dtype)


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


def _dense(x: Tensor) -> Tensor:
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else x.contiguous()


def _new_qparams(x: Tensor) -> QParams:
    """Room for a scale and a zero point; their tensors stand where an `QParams` of the CPU has numbers."""
    return QParams(
        torch.empty(1, dtype=torch.float32, device=x.device),
        torch.empty(1, dtype=torch.int32, device=x.device),
    )


def _joined(parts: Tensor | None) -> tuple[int, int]:
    """How many parts there are, and how many are read at once."""
    count = 1 if parts is None else parts.shape[1]
    return count, triton.next_power_of_2(count)


def _extremes(x: Tensor) -> Tensor:
    programs = min(MAX_PARTS, triton.cdiv(x.numel(), BLOCK))
    parts = torch.empty((2, programs), dtype=torch.float32, device=x.device)
    quantize_input.find_extremes[(programs,)](x, parts, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return parts
