"""Norms on a GPU that leave bytes: statistics in one pass over x, bytes in the next.

GroupNorm becomes x * gain + shift, a pair for each image and channel. The range of its output follows from
that pair and each channel's extremes, found in the same pass as mean and variance; through SiLU it is the
range of SiLU over that interval, as `quantize.cpu.activations` defines it. Variances are joined from those of
small tiles (Chan et al. 1979), which loses nothing where the mean is large.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - kernels take pointers and sizes, many and untyped

from __future__ import annotations

import triton
import triton.language as tl

from quantize.triton.quantize_input import read_qparams, to_signed


@triton.jit
def look_at_groups(
    x, added, stats, low_out, high_out, channels, pixels, span, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Of `span` pixels of one group of x [b, pixels, channels] + added [b, channels].

    stats [b, groups, 3, parts]: mean, sum of squares about it, count. low_out, high_out [b, parts, channels]:
    each channel's extremes.
    """
    image, part = tl.program_id(0) // (channels // GROUP), tl.program_id(1)
    within = tl.arange(0, WIDTH)
    channel = (tl.program_id(0) % (channels // GROUP)) * GROUP + within
    known = within < GROUP
    more = tl.zeros((WIDTH,), tl.float32)
    if added is not None:
        more = tl.load(added + image * channels + channel, mask=known, other=0.0).to(tl.float32)
    mean, squares, count = 0.0, 0.0, 0.0
    low = tl.full((WIDTH,), float("inf"), tl.float32)
    high = tl.full((WIDTH,), float("-inf"), tl.float32)
    first = part * span
    last = tl.minimum(first + span, pixels)
    for start in range(first, last, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = (pixel < last)[:, None] & known[None, :]
        place = (image.to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + more[None, :]
        few = ((tl.minimum(start + PIXELS, last) - start) * GROUP).to(tl.float32)
        own = tl.sum(tl.sum(tl.where(inside, value, 0.0), axis=1), axis=0) / few
        away = tl.where(inside, value - own, 0.0)
        squares += tl.sum(tl.sum(away * away, axis=1), axis=0)
        squares += (own - mean) * (own - mean) * count * few / (count + few)
        mean += (own - mean) * few / (count + few)
        count += few
        value = tl.where(value == value, value, float("inf"))  # a comparison would lose NaN
        low = tl.minimum(low, tl.min(tl.where(inside, value, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, value, float("-inf")), axis=0))
    parts = tl.num_programs(1)
    out = stats + tl.program_id(0) * 3 * parts + part
    tl.store(out, mean)
    tl.store(out + parts, squares)
    tl.store(out + 2 * parts, count)
    ends = (image * parts + part) * channels + channel
    tl.store(low_out + ends, low, mask=known)
    tl.store(high_out + ends, high, mask=known)


@triton.jit
def finish_groups(
    stats, lows, highs, weight, bias, added, gain, shift, ends, channels, parts, eps,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """gain and shift [b, channels] of one group; ends [2, b * groups]: extremes of its norm."""
    part, within = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    there, known = part < parts, within < GROUP
    own = stats + tl.program_id(0) * 3 * parts + part
    mean = tl.load(own, mask=there, other=0.0)
    squares = tl.load(own + parts, mask=there, other=0.0)
    count = tl.load(own + 2 * parts, mask=there, other=0.0)
    total = tl.sum(count, axis=0)
    middle = tl.sum(mean * count, axis=0) / total
    squares += (mean - middle) * (mean - middle) * count  # Chan's: spread within parts, and of their means
    image = tl.program_id(0) // (channels // GROUP)
    channel = (tl.program_id(0) % (channels // GROUP)) * GROUP + within
    factor = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    factor = factor / tl.sqrt(tl.sum(squares, axis=0) / total + eps)
    offset = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32) - middle * factor
    place = (image * parts + part)[:, None] * channels + channel[None, :]
    inside = there[:, None] & known[None, :]
    low = tl.min(tl.load(lows + place, mask=inside, other=float("inf")), axis=0) * factor + offset
    high = tl.max(tl.load(highs + place, mask=inside, other=float("-inf")), axis=0) * factor + offset
    sound = (low == low) & (high == high)
    bottom = tl.where(sound, tl.minimum(low, high), float("-inf"))
    top = tl.where(sound, tl.maximum(low, high), float("inf"))
    tl.store(ends + tl.program_id(0), tl.min(tl.where(known, bottom, float("inf")), axis=0))
    tl.store(
        ends + tl.num_programs(0) + tl.program_id(0), tl.max(tl.where(known, top, float("-inf")), axis=0)
    )
    if added is not None:
        more = tl.load(added + image * channels + channel, mask=known, other=0.0).to(tl.float32)
        offset += more * factor
    tl.store(gain + image * channels + channel, factor, mask=known)
    tl.store(shift + image * channels + channel, offset, mask=known)


@triton.jit
def look_at_rows(x, weight, bias, parts, rows, eps, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """parts [2, programs]: extremes of the layer norm of x [rows, DEPTH]."""
    low = tl.full((WIDTH,), float("inf"), tl.float32)
    high = tl.full((WIDTH,), float("-inf"), tl.float32)
    known = tl.arange(0, WIDTH) < DEPTH
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        value = _layer_norm(x, weight, bias, row, eps, DEPTH, WIDTH)
        value = tl.where(value == value, value, float("inf"))
        low = tl.minimum(low, tl.where(known, value, float("inf")))
        high = tl.maximum(high, tl.where(known, value, float("-inf")))
    tl.store(parts + tl.program_id(0), tl.min(low, axis=0))
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), tl.max(high, axis=0))


@triton.jit
def write_rows(
    x, weight, bias, values, scale_out, zero_out, parts, programs, in_scale, in_zero, at, eps,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """values int8 of the layer norm of one row; scale_out [1] and zero_out [1] by the first program."""
    scale, zero = read_qparams(parts, programs, in_scale, in_zero, at, False, PARTS)
    row = tl.program_id(0)
    if row == 0:
        tl.store(scale_out, scale)
        tl.store(zero_out, zero.to(tl.int32))
    value = _layer_norm(x, weight, bias, row, eps, DEPTH, WIDTH)
    within = tl.arange(0, WIDTH)
    tl.store(values + row * DEPTH + within, to_signed(value, scale, zero), mask=within < DEPTH)


@triton.jit
def _layer_norm(x, weight, bias, row, eps, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    within = tl.arange(0, WIDTH)
    known = within < DEPTH
    value = tl.load(x + row * DEPTH + within, mask=known, other=0.0).to(tl.float32)
    away = tl.where(known, value - tl.sum(value, axis=0) / DEPTH, 0.0)
    away = away / tl.sqrt(tl.sum(away * away, axis=0) / DEPTH + eps)
    factor = tl.load(weight + within, mask=known, other=0.0).to(tl.float32)
    return away * factor + tl.load(bias + within, mask=known, other=0.0).to(tl.float32)
