"""Activations to bytes on a GPU, in two passes and without a word to the host.

The first pass leaves the extremes of some hundred parts, the second joins them, makes the qparams and writes
the bytes: no atomics, nothing to clear, the same result each time. Bytes are signed, since tensor cores
multiply signed ones: code and zero point are both 128 less than the reference's, so they stand for the same
numbers. NaN and infinity cannot be refused without waiting for the GPU; they turn the scale, and so the
whole output of the layer, into NaN. Ranges from calibration look at nothing, here as anywhere.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - kernels take pointers and sizes, many and untyped

from __future__ import annotations

import triton
import triton.language as tl

FP8_PEAK = tl.constexpr(448.0)  # of float8_e4m3
# SiLU falls to its least value at the turn and rises on both sides of it.
SILU_TURN, SILU_LEAST = tl.constexpr(-1.27846454), tl.constexpr(-0.27846454)
TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal float32
# Added and taken away, they leave no place for digits behind the point; ties go to the even neighbour.
NEAREST_FLOAT = tl.constexpr(12582912.0)  # 1.5 * 2**23, right below 2**22
NEAREST_DOUBLE = tl.constexpr(6755399441055744.0)  # 1.5 * 2**52


@triton.jit
def find_extremes(x, parts, total, BLOCK: tl.constexpr):
    """parts [2, programs]: smallest and largest of x, one pair a program; endless where there is NaN."""
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(tl.program_id(0) * BLOCK, total, tl.num_programs(0) * BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < total
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(value == value, value, float("inf"))  # a comparison would lose NaN
        low = tl.minimum(low, tl.where(inside, value, float("inf")))
        high = tl.maximum(high, tl.where(inside, value, float("-inf")))
    tl.store(parts + tl.program_id(0), tl.min(low, axis=0))
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), tl.max(high, axis=0))


@triton.jit
def write_bytes(
    x, gain, shift, values, scale_out, zero_out, parts, programs, in_scale, in_zero, at,
    total, channels, image, SILU: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """values int8 of x, channels last where it has gain and shift [images, channels], then SiLU where asked.

    scale_out [1] and zero_out [1] are written by the first program.
    """
    scale, zero = read_qparams(parts, programs, in_scale, in_zero, at, SILU, PARTS)
    if tl.program_id(0) == 0:
        tl.store(scale_out, scale)
        tl.store(zero_out, zero.to(tl.int32))
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    if gain is not None:
        place = (index // image) * channels + index % channels
        value = value * tl.load(gain + place, mask=inside, other=0.0)
        value = value + tl.load(shift + place, mask=inside, other=0.0)
    if SILU:
        value = _silu(value)
    tl.store(values + index, to_signed(value, scale, zero), mask=inside)


@triton.jit
def write_fp8(x, values, scale_out, parts, programs, total, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """values float8_e4m3 of x by the largest magnitude of all; scale_out [1] by the first program."""
    low, high = _joined(parts, programs, PARTS)
    scale = tl.div_rn(tl.maximum(tl.abs(low), tl.abs(high)), FP8_PEAK)
    scale = tl.where(scale >= TINY, scale, 1.0)
    scale = tl.where(scale < float("inf"), scale, float("nan"))
    if tl.program_id(0) == 0:
        tl.store(scale_out, scale)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    value = tl.div_rn(tl.load(x + index, mask=inside, other=0.0).to(tl.float32), scale)
    value = tl.minimum(tl.maximum(value, -FP8_PEAK), FP8_PEAK)
    tl.store(values + index, value.to(tl.float8e4nv), mask=inside)


@triton.jit
def read_qparams(parts, programs, in_scale, in_zero, at, SILU: tl.constexpr, PARTS: tl.constexpr):
    """Scale and signed zero point, float32 both: of the range in parts, through SiLU if asked, or given."""
    if parts is None:
        place = 0 if at is None else tl.load(at)
        scale = tl.load(in_scale + place)
        zero = tl.load(in_zero + place).to(tl.float32) - 128.0
    else:
        low, high = _joined(parts, programs, PARTS)
        sound = (low > float("-inf")) & (high < float("inf"))
        if SILU:
            turns = (low < SILU_TURN) & (high > SILU_TURN)
            first, last = _silu(low), _silu(high)
            low = tl.where(turns, SILU_LEAST, tl.minimum(first, last))
            high = tl.maximum(first, last)
        scale, zero = _signed_qparams(low, high)
        scale = tl.where(sound, scale, float("nan"))
    return scale, zero


@triton.jit
def to_signed(value, scale, zero):
    """float32 -> int8 codes, the nearest end's for what lies beyond."""
    level = tl.div_rn(value, scale)
    level = tl.minimum(tl.maximum(level, -128.0 - zero), 127.0 - zero)
    return (_nearest(level) + zero).to(tl.int8)


@triton.jit
def _joined(parts, programs, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    low = tl.load(parts + part, mask=part < programs, other=float("inf"))
    high = tl.load(parts + programs + part, mask=part < programs, other=float("-inf"))
    return tl.min(low, axis=0), tl.max(high, axis=0)


@triton.jit
def _silu(value):
    return value / (1.0 + tl.exp(-value))


@triton.jit
def _nearest(value):
    """The whole number that is nearest to a float32 of less than 2**22."""
    return (value + NEAREST_FLOAT) - NEAREST_FLOAT


@triton.jit
def _signed_qparams(low, high):
    """`arithmetic.qparams_of` for float32 ends: scale, and zero point less 128, as float32.

    In double precision, as Python computes it: a scale that is off by one bit moves codes.
    """
    low = tl.minimum(low, 0.0).to(tl.float64)
    high = tl.maximum(high, 0.0).to(tl.float64)
    step = (high - low) / 255.0
    flat = step < TINY
    step = tl.where(flat, 1.0, step)
    zero = (-low / step + NEAREST_DOUBLE) - NEAREST_DOUBLE
    zero = tl.where(flat, 0.0, tl.minimum(zero, 255.0))
    return step.to(tl.float32), (zero - 128.0).to(tl.float32)
