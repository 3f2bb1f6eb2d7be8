"""int8 convolutions by the native kernel (quantize/native/conv.cpp), of any geometry without groups.

As fast as oneDNN where positions are many, up to a fifth faster where they are few, packed in less time.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quantize import native
from quantize.activations import Quantized
from quantize.backends.cpu_linear import GROUP, PackedLinear
from quantize.schemes import Geometry

PAIR = ctypes.c_int64 * 2  # height, width
# `Conv` of quantize/native/conv.cpp.
ARGUMENTS = native.structure(
    "x border weights sums scale bias out",
    "batch inputs outputs zero onto threads",
    **dict.fromkeys(("size", "out_size", "taps", "stride", "padding", "dilation"), PAIR),
    x_scale=ctypes.c_float,
)


class PackedConv(PackedLinear):
    """The int8 weights [out, in, rows, columns] of a convolution; `pack_conv` makes it."""

    gates = False

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        super().__init__(weight.permute(0, 2, 3, 1).flatten(1))
        self._geometry = {
            "taps": tuple(weight.shape[2:]),
            "stride": geometry.stride,
            "padding": geometry.padding,
            "dilation": geometry.dilation,
        }

    def multiply(self, x: Quantized, scale: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """float32 [b, h', w', out] of bytes [b, h, w, in]; the rest as of a Linear layer.

        Raises ValueError for pictures that are smaller than the kernel.
        """
        values, (x_scale, zero) = x.values.contiguous(), x.qparams
        batch, *size, inputs = values.shape
        out_size = self._out_size(size)
        out = torch.empty(batch, *out_size, self.outputs) if onto is None else onto
        native.run(
            "fw_conv", ARGUMENTS, x=values, border=torch.full((inputs,), zero, dtype=torch.uint8),
            weights=self._weights, sums=self._sums, scale=self._padded(scale),
            bias=self._zeros if bias is None else self._padded(bias), out=out,
            batch=batch, inputs=inputs, outputs=self.outputs, zero=zero, x_scale=x_scale,
            onto=onto is not None, threads=torch.get_num_threads(),
            size=tuple(size), out_size=tuple(out_size), **self._geometry,
        )  # fmt: skip
        return out

    def _out_size(self, size: list[int]) -> list[int]:
        out_size = [
            (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for length, taps, stride, padding, dilation in zip(size, *self._geometry.values(), strict=True)
        ]
        if min(out_size) < 1:
            raise ValueError(f"pictures of {size} positions are smaller than the kernel: {self._geometry}")
        return out_size


def pack_conv(weight: Tensor, geometry: Geometry) -> PackedConv | None:
    """int8 weights [out, in, rows, columns] for the native kernel; None where there is none for them."""
    if geometry.groups != 1 or weight.shape[1] % GROUP or native.function("fw_conv", "p") is None:
        return None
    return PackedConv(weight, geometry)
