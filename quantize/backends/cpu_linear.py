"""int8 Linear layers by the native kernel (quantize/native/linear.cpp): as oneDNN's, and gated ones to bytes.

Its products are as fast as oneDNN's for wide layers and faster for narrow ones, whose outputs cost as much as
their sums; a gate behind the layer is computed while the sums are in registers.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize import native
from quantize.activations import QParams, Quantized

PANEL = 32  # outputs whose weights lie together
GROUP = 4  # inputs that one instruction multiplies
# `Linear` of quantize/native/linear.cpp.
ARGUMENTS = native.structure(
    "x weights sums scale bias out bytes",
    "rows inputs outputs zero out_zero onto threads",
    x_scale=ctypes.c_float,
    out_scale=ctypes.c_float,
)


class PackedLinear:
    """The int8 weights [out, in] of a layer in the kernel's own form; `pack_linear` makes it."""

    def __init__(self, weight: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        padded = _up(self.outputs, PANEL)
        self._weights = torch.empty(padded * _up(self.inputs, GROUP), dtype=torch.int8)
        self._sums = torch.empty(padded, dtype=torch.int32)
        self._zeros = torch.zeros(padded)
        weight = weight.contiguous()
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
            name, ARGUMENTS, x=values, weights=self._weights, sums=self._sums, scale=self._padded(scale),
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


def pack_linear(weight: Tensor) -> PackedLinear | None:
    """int8 weights [out, in] for the native kernel; None where there is none."""
    return None if native.function("fw_linear_pack", "pllpp") is None else PackedLinear(weight)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
