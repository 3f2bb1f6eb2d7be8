"""`quantize.arithmetic`'s roundings in Triton."""

# ruff: noqa: ANN001, ANN201 - tensors of the language have no types to write

from __future__ import annotations

import triton
import triton.language as tl

# Added and taken away, they leave no place for digits behind the point; ties go to the even neighbour.
NEAREST_FLOAT = tl.constexpr(12582912.0)  # 1.5 * 2**23, right below 2**22
NEAREST_DOUBLE = tl.constexpr(6755399441055744.0)  # 1.5 * 2**52
TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal float32


@triton.jit
def nearest(value):
    """The whole number that is nearest to a float32 of less than 2**22."""
    return (value + NEAREST_FLOAT) - NEAREST_FLOAT


@triton.jit
def signed_qparams(low, high):
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
