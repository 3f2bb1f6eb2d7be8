"""Activations that are bytes already: what a fused norm or gate hands to a quantized layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from quantize.arithmetic import Affine, dequantize_uint8


class Quantized(NamedTuple):
    """An activation as bytes, and how to read them.

    codes: uint8 in the shape and memory format that the float activation would have.
    """

    codes: Tensor
    affine: Affine

    def float(self) -> Tensor:
        """The numbers that the bytes stand for, float32."""
        return dequantize_uint8(*self)
