"""Activations as unsigned bytes with a zero point: the formulas, and what a fused norm or gate hands on.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference": x is about scale * (q - zero).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantize.arithmetic import TINY

UINT8_PEAK = 255  # a whole byte: zero has a code among them


class QParams(NamedTuple):
    """How a tensor's numbers become bytes: x is about scale * (q - zero)."""

    scale: float  # above 0
    zero: int  # in [0, 255], as q is


class Quantized(NamedTuple):
    """An activation as bytes, and how to read them."""

    values: Tensor  # uint8, in the shape and memory format that the float activation would have
    qparams: QParams

    def float(self) -> Tensor:
        """The numbers that the bytes stand for, float32."""
        return dequantize_uint8(*self)


def qparams_of(low: float, high: float, what: str = "an activation") -> QParams:
    """The unsigned bytes that cover [low, high] and hold zero exactly (padding is zero).

    Raises ValueError in one sentence for NaN, infinity or a range that is upside down.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} ranges from {low} to {high}: only numbers can be quantized")
    if low > high:
        raise ValueError(f"{what} ranges from {low} to {high}: the lower end comes first")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / UINT8_PEAK
    if scale < TINY:
        return QParams(1.0, 0)  # nothing but zeros, or too small to tell from them
    return QParams(scale, min(UINT8_PEAK, round(-low / scale)))


def range_of(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value; (0, 0) of nothing, NaN where one is NaN."""
    if not x.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(x.detach())
    return low.item(), high.item()


def quantize_uint8(x: Tensor, qparams: QParams) -> Tensor:
    """Numbers -> bytes; what lies beyond the range gets the nearest end's level."""
    return (x.float() / qparams.scale).round_().add_(qparams.zero).clamp_(0, UINT8_PEAK).to(torch.uint8)


def dequantize_uint8(values: Tensor, qparams: QParams) -> Tensor:
    """Bytes -> float32."""
    return (values.float() - qparams.zero) * qparams.scale
