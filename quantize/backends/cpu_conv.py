"""int8 convolutions by the native kernel (quantize/native/conv.cpp), of any walk but for groups.

As fast as oneDNN where positions are many, up to a fifth faster where they are few, packed in less time.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quantize import native
from quantize.activations import Quantized
from quantize.backends.cpu_linear import GROUP, PackedLinear
from quantize.spec import Geometry

POINTERS = ("x", "border", "weights", "sums", "scale", "bias", "out")
NUMBERS = ("batch", "inputs", "outputs", "zero", "onto", "threads")
PAIRS = ("size", "out_size", "taps", "stride", "padding", "dilation")  # height, width
Pair = ctypes.c_int64 * 2


class Call(ctypes.Structure):
    """`Conv` of quantize/native/conv.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in NUMBERS),
        *((name, Pair) for name in PAIRS),
        ("x_scale", ctypes.c_float),
    )


class PackedConv(PackedLinear):
    """The int8 weights [out, in, rows, columns] of a convolution; `pack_conv` makes it."""

    gates = False

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        super().__init__(weight.permute(0, 2, 3, 1).flatten(1))
        self._walk = {
            "taps": tuple(weight.shape[2:]),
            "stride": geometry.stride,
            "padding": geometry.padding,
            "dilation": geometry.dilation,
        }

    def multiply(self, x: Quantized, scale: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """float32 [b, h', w', out] of bytes [b, h, w, in]; the rest as of a Linear layer.

        Raises ValueError for pictures that are smaller than the kernel.
        """
        values, scale = x.values.contiguous(), self._padded(scale)
        bias = self._zeros if bias is None else self._padded(bias)
        batch, *size, inputs = values.shape
        out_size = self._out_size(size)
        pairs = {"size": size, "out_size": out_size, **self._walk}
        out = torch.empty(batch, *out_size, self.outputs) if onto is None else onto
        border = torch.full((inputs,), x.qparams.zero, dtype=torch.uint8)
        call = Call(
            x=values.data_ptr(),
            border=border.data_ptr(),
            weights=self._weights.data_ptr(),
            sums=self._sums.data_ptr(),
            scale=scale.data_ptr(),
            bias=bias.data_ptr(),
            out=out.data_ptr(),
            batch=batch,
            inputs=inputs,
            outputs=self.outputs,
            zero=x.qparams.zero,
            onto=onto is not None,
            threads=torch.get_num_threads(),
            x_scale=x.qparams.scale,
            **{name: Pair(*pair) for name, pair in pairs.items()},
        )
        native.function("fw_conv", "p")(ctypes.byref(call))
        return out

    def _out_size(self, size: list[int]) -> list[int]:
        out_size = [
            (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for length, taps, stride, padding, dilation in zip(size, *self._walk.values(), strict=True)
        ]
        if min(out_size) < 1:
            raise ValueError(f"pictures of {size} positions are smaller than the kernel: {self._walk}")
        return out_size


def pack_conv(weight: Tensor, geometry: Geometry) -> PackedConv | None:
    """int8 weights [out, in, rows, columns] for the native kernel; None where there is none for them."""
    if geometry.groups != 1 or weight.shape[1] % GROUP or native.function("fw_conv", "p") is None:
        return None
    return PackedConv(weight, geometry)
