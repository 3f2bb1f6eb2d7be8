"""Linear and Conv2d as one matrix product on tensor cores; patches of a convolution are gathered on the way.

Implicit GEMM (Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning"): a row is an output
pixel, the sum runs over taps and channels, activations lie channels last and weights [out, taps, channels]. A
Linear layer is a convolution of one tap. Padding is filled with the zero POINT, so that taking the zero point
times the weights' sums away is right at the borders too. Weights stay codes in memory and in the cache.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - kernels take pointers and sizes, many and untyped

from __future__ import annotations

import triton
import triton.language as tl

BAND = tl.constexpr(8)  # rows of tiles that are walked together: their weights stay in the L2 cache
IMPRECISE = tl.constexpr(32)  # products of fp8 that Hopper may sum in its own few bits before float32


@triton.jit
def multiply(
    x, weight, out, x_scale, x_zero, w_scale, w_sums, bias,
    rows, columns, inside, height, width, out_height, out_width, x_step, out_step,
    TAPS_X: tl.constexpr, TAPS: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATE_Y: tl.constexpr, DILATE_X: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Weights int8 or fp8 with a scale for each output; x int8, fp8 or float (then they become as x is)."""
    BYTES: tl.constexpr = x.dtype.element_ty == tl.int8
    row, column = _tile(rows, columns, ROWS, COLUMNS)
    group = tl.program_id(1)
    corner = _corner(row, out_height, out_width, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X)
    fill = 0.0 if x_zero is None else tl.load(x_zero).to(x.dtype.element_ty)
    blocks = tl.cdiv(inside, DEPTH)
    sums = tl.zeros((ROWS, COLUMNS), tl.int32 if BYTES else tl.float32)
    for step in range(TAPS * blocks):
        tap = step // blocks
        channel = (step % blocks) * DEPTH + tl.arange(0, DEPTH)
        place, valid = _pixels(
            corner, tap, row < rows, height, width, x_step, TAPS_X, TAPS, DILATE_Y, DILATE_X
        )
        known = valid[:, None] & (channel < inside)[None, :]
        seen = tl.load(x + place[:, None] + group * inside + channel[None, :], mask=known, other=fill)
        codes = (group * columns + column)[None, :] * (TAPS * inside) + tap * inside + channel[:, None]
        held = (column < columns)[None, :] & (channel < inside)[:, None]
        levels = tl.load(weight + codes, mask=held, other=0.0)
        if BYTES:
            sums = tl.dot(seen, levels, sums, out_dtype=tl.int32)
        elif x.dtype.element_ty == weight.dtype.element_ty:
            sums = tl.dot(seen, levels, sums, max_num_imprecise_acc=IMPRECISE)
        else:
            sums = tl.dot(seen, levels.to(seen.dtype), sums, input_precision="tf32x3")
    store(sums, out, x_scale, x_zero, w_scale, w_sums, bias, row, column, rows, columns, group, out_step)


@triton.jit
def multiply_int4(
    x, weight, out, w_scale, bias, scales, half,
    rows, columns, inside, height, width, out_height, out_width, x_step, out_step,
    TAPS_X: tl.constexpr, TAPS: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATE_Y: tl.constexpr, DILATE_X: tl.constexpr,
    SHARING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Weights [out, taps, half]: a byte holds channel j and, in its upper bits, channel half + j.

    w_scale [out, scales]: one for SHARING weights that follow each other in the order channel, tap.
    """
    row, column = _tile(rows, columns, ROWS, COLUMNS)
    group = tl.program_id(1)
    corner = _corner(row, out_height, out_width, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X)
    blocks = tl.cdiv(half, DEPTH)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    wanted = (column < columns)[None, :]
    own = (group * columns + column)[None, :]
    for step in range(TAPS * blocks):
        tap = step // blocks
        channel = (step % blocks) * DEPTH + tl.arange(0, DEPTH)
        place, valid = _pixels(
            corner, tap, row < rows, height, width, x_step, TAPS_X, TAPS, DILATE_Y, DILATE_X
        )
        held = wanted & (channel < half)[:, None]
        both = tl.load(weight + own * (TAPS * half) + tap * half + channel[:, None], mask=held, other=0)
        for high in tl.static_range(2):
            one = channel + high * half
            there = (channel < half) & (one < inside)
            known = valid[:, None] & there[None, :]
            seen = tl.load(x + place[:, None] + group * inside + one[None, :], mask=known, other=0.0)
            shared = own * scales + ((one * TAPS + tap) // SHARING)[:, None]
            scale = tl.load(w_scale + shared, mask=wanted & there[:, None], other=0.0).to(tl.float32)
            level = (((both.to(tl.int32) >> (4 * high)) & 15) ^ 8) - 8  # four bits with a sign
            values = (level.to(tl.float32) * scale).to(seen.dtype)
            sums = tl.dot(seen, values, sums, input_precision="tf32x3")
    store(sums, out, None, None, None, None, bias, row, column, rows, columns, group, out_step)


@triton.jit
def rescale(
    sums, out, x_scale, x_zero, w_scale, w_sums, bias, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out of the sums [rows, columns] that a library made, as at the end of `multiply`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    held = (row < rows)[:, None] & (column < columns)[None, :]
    made = tl.load(sums + place, mask=held, other=0)
    store(made, out, x_scale, x_zero, w_scale, w_sums, bias, row, column, rows, columns, 0, columns)


@triton.jit
def store(
    sums, out, x_scale, x_zero, w_scale, w_sums, bias, row, column, rows, columns, group, out_step
):  # fmt: skip
    """(sums - zero * sum of the weights) * both scales + bias, in the type of out."""
    channel = group * columns + column
    wanted = column < columns
    if w_sums is not None:
        sums -= (tl.load(w_sums + channel, mask=wanted, other=0) * tl.load(x_zero))[None, :]
    made = sums.to(tl.float32)
    if w_scale is not None:
        scale = tl.load(w_scale + channel, mask=wanted, other=0.0)
        if x_scale is not None:
            scale = scale * tl.load(x_scale)
        made = made * scale[None, :]
    if bias is not None:
        made += tl.load(bias + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * out_step + channel[None, :]
    held = (row < rows)[:, None] & wanted[None, :]
    tl.store(out + place, made.to(out.dtype.element_ty), mask=held)


@triton.jit
def _tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows and columns of this program: down a band of tiles first, then to the next column."""
    across = tl.cdiv(columns, COLUMNS)
    band = tl.program_id(0) // (BAND * across)
    tall = tl.minimum(tl.cdiv(rows, ROWS) - band * BAND, BAND)
    within = tl.program_id(0) % (BAND * across)
    row = (band * BAND + within % tall) * ROWS + tl.arange(0, ROWS)
    return row, (within // tall) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _corner(
    row, out_height, out_width, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
):  # fmt: skip
    """Image, line and column where the first tap of each row lies, outside of the picture at its border."""
    pixel = row % (out_height * out_width)
    top = (pixel // out_width) * STRIDE_Y - PAD_Y
    left = (pixel % out_width) * STRIDE_X - PAD_X
    return row // (out_height * out_width), top, left


@triton.jit
def _pixels(
    corner, tap, valid, height, width, x_step,
    TAPS_X: tl.constexpr, TAPS: tl.constexpr, DILATE_Y: tl.constexpr, DILATE_X: tl.constexpr,
):  # fmt: skip
    """Where in x each row's pixel under a tap begins, and whether it is in the picture."""
    image, y, x = corner
    if TAPS > 1:
        y += (tap // TAPS_X) * DILATE_Y
        x += (tap % TAPS_X) * DILATE_X
    valid = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return image.to(tl.int64) * (height * width * x_step) + (y * width + x) * x_step, valid
