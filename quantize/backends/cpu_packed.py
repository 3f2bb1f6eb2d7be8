"""int8 layers by the native kernels (quantize/native/linear.cpp and conv.cpp).

Linear layers are as fast as oneDNN's where they are wide and faster where they are narrow, whose outputs cost
as much as their sums; a gate behind the layer is computed while the sums are in registers. Convolutions of
any geometry without groups are as fast as oneDNN's where positions are many, up to a fifth faster where they
are few, packed in less time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize import native
from quantize.activations import QParams, Quantized
from quantize.schemes import Geometry

PANEL = 32  # outputs whose weights lie together
GROUP = 4  # inputs that one instruction multiplies
# `Linear` of quantize/native/linear.cpp.
LINEAR = native.structure(
    "x weights sums scale bias out bytes",
    "rows inputs outputs zero out_zero onto threads",
    x_scale=ctypes.c_float,
    out_scale=ctypes.c_float,
)
PAIR = ctypes.c_int64 * 2  # height, width
# `Conv` of quantize/native/conv.cpp.
CONV = native.structure(
    "x border weights sums scale bias out",
    "batch inputs outputs zero onto threads",
    **dict.fromkeys(("size", "out_size", "taps", "stride", "padding", "dilation"), PAIR),
    x_scale=ctypes.c_float,
)


class PackedLinear:
    """The int8 weights [out, in] of a layer in the kernel's own form; `pack_linear` makes it."""

    def __init__(self, weight: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        padded = _up(self.outputs, PANEL)
        self._weights = torch.empty(padded * _up(self.inputs, GROUP), dtype=torch.int8)
        self._sums = torch.empty(padded, dtype=torch.int32)
        self._zeros = torch.zeros(padded)
        weight = weight.contiguous()  # the kernel reads it row by row
        pack = native.function("fw_linear_pack", "pllpp")
        pack(weight, *weight.shape, self._weights, self._sums)

    @property
    def gates(self) -> bool:
        """Whether it can gate: values and gates must not share a panel."""
        return self.outputs % (2 * PANEL) == 0

    def multiply(self, x: Quantized, scale: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """float32 [..., out] of bytes [..., in] and the weights' scale [out].

        onto: contiguous float32 [..., out] that the output is added to, in its memory.
        """
        shape = (*x.values.shape[:-1], self.outputs)
        out = torch.empty(shape) if onto is None else onto
        self._compute("fw_linear", x, scale, bias, onto=onto is not None, out=out)
        return out

    def gated(self, x: Quantized, scale: Tensor, bias: Tensor | None, qparams: QParams) -> Quantized:
        """The first half of the outputs times the exact GELU of the second, as bytes [..., out / 2]."""
        values = torch.empty((*x.values.shape[:-1], self.outputs // 2), dtype=torch.uint8)
        made = {"bytes": values, "out_scale": qparams.scale, "out_zero": qparams.zero}
        self._compute("fw_linear_gated", x, scale, bias, **made)
        return Quantized(values, qparams)

    def _compute(self, name: str, x: Quantized, scale: Tensor, bias: Tensor | None, **made: Any) -> None:
        values, qparams = x.values.contiguous(), x.qparams
        native.run(
            name, LINEAR, x=values, weights=self._weights, sums=self._sums, scale=self._padded(scale),
            bias=self._zeros if bias is None else self._padded(bias),
            rows=values.numel() // self.inputs, inputs=self.inputs, outputs=self.outputs,
            zero=qparams.zero, x_scale=qparams.scale, threads=torch.get_num_threads(), **made,
        )  # fmt: skip

    def _padded(self, row: Tensor) -> Tensor:
        """[out] -> float32 [out up], which whole panels can read; the row itself where it is like that."""
        padded = self._zeros.numel()
        if row.dtype == torch.float32 and row.numel() == padded and row.is_contiguous():
            return row
        return F.pad(row.detach().float(), (0, padded - row.numel())).contiguous()


class PackedConv(PackedLinear):
    """The int8 weights [out, in, rows, columns] of a convolution; `pack_conv` makes it."""

    gates = False  # gates stand behind Linear layers alone

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
            "fw_conv", CONV, x=values, border=torch.full((inputs,), zero, dtype=torch.uint8),
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


def pack_linear(weight: Tensor) -> PackedLinear | None:
    """int8 weights [out, in] for the native kernel; None where there is none."""
    return None if native.function("fw_linear_pack", "pllpp") is None else PackedLinear(weight)


def pack_conv(weight: Tensor, geometry: Geometry) -> PackedConv | None:
    """int8 weights [out, in, rows, columns] for the native kernel; None where there is none for them."""
    if geometry.groups != 1 or weight.shape[1] % GROUP or native.function("fw_conv", "p") is None:
        return None
    return PackedConv(weight, geometry)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
