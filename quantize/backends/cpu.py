"""int8 layers by VNNI, x86's instructions for bytes times signed bytes summed in 32 bits.

Native kernels (`cpu_packed`) compute the layers that they take, oneDNN, the library behind torch,
the others. Weights are packed at the first call and never leave int8. Inputs must be unsigned: on some CPUs
oneDNN's operator never returns from signed ones. Without VNNI its multiply-add saturates at 16 bits, which
would change results, so such CPUs are left to the reference.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from quantize.activations import QParams, Quantized
from quantize.backends.cpu_packed import PackedLinear, pack_conv, pack_linear
from quantize.backends.reference import Layer, Reference, empty_output, out_dtype
from quantize.cpu.dequantize import DEQUANTIZERS
from quantize.schemes import Geometry, LayerSpec

log = logging.getLogger(__name__)

FLOAT_OUT = (1.0, 0, torch.float32)  # scale, zero point and type of the output: sums come back as numbers
NO_POST_OP = ("none", [], "")  # nothing is fused behind the product
POINTWISE = Geometry(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
OPERATORS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv2d_pointwise")


@functools.cache
def lacks() -> str | None:
    """What this CPU or this torch lacks, in words; None when nothing. Logged when first asked."""
    reason = None
    if not all(hasattr(torch.ops.onednn, name) for name in OPERATORS):
        reason = "this torch was built without oneDNN's int8 operators"
    elif not torch.cpu._is_vnni_supported():  # the only question about it that torch answers
        reason = "this CPU has no VNNI instructions"
    if reason:
        log.warning("%s: int8 layers are computed by the slow reference", reason)
    return reason


class Vnni(Reference):
    """int8 weights with dynamic or static inputs: with float ones there is nothing to gain from it."""

    lacks = staticmethod(lacks)

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self._packed: Tensor | PackedLinear | None = None
        self._zeros: Tensor | None = None  # weights are symmetric, but the operators want their zero points
        geo = spec.geometry
        # A convolution that looks at one position is a Linear layer over them: up to four times as fast.
        self._linear = geo is None or (spec.shape[2:], geo) == ((1, 1), POINTWISE)

    @property
    def packed(self) -> bool:
        """See `Reference`."""
        return self._packed is not None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """See `Reference`."""
        return spec.rule.weights == "int8" and spec.rule.inputs != "float"

    def __call__(self, layer: Layer, x: Tensor | Quantized) -> Tensor:
        """See `Reference`."""
        given = x.values if isinstance(x, Quantized) else x
        if not given.numel():
            return empty_output(self.spec, given, out_dtype(x))
        return self._multiply(layer, x, None).to(out_dtype(x))

    def add(self, layer: Layer, x: Tensor | Quantized, onto: Tensor) -> Tensor:
        """See `Reference`: the sum is part of the multiplication, where `onto` lies as the output does."""
        layout = torch.contiguous_format if self.spec.geometry is None else torch.channels_last
        fits = onto.dtype == out_dtype(x) == torch.float32 and onto.is_contiguous(memory_format=layout)
        return self._multiply(layer, x, onto) if fits and onto.numel() else super().add(layer, x, onto)

    def gated(self, layer: Layer, x: Tensor | Quantized, qparams: QParams | None) -> Quantized:
        """See `Reference`: where the range is known, the numbers between are never in memory."""
        self.pack(layer)
        packed, given = self._packed, x.values if isinstance(x, Quantized) else x
        known = qparams is not None and given.numel() and out_dtype(x) == torch.float32
        if not (known and isinstance(packed, PackedLinear) and packed.gates):
            return super().gated(layer, x, qparams)
        return packed.gated(layer.quantize_input(x), layer.scale, layer.bias, qparams)

    def pack(self, layer: Layer) -> None:
        """See `Reference`."""
        weight, scale, geo = layer.qweight, layer.scale, self.spec.geometry
        if self._packed is not None or weight is None:  # another thread may be first
            return
        self._zeros = torch.zeros(scale.shape, dtype=torch.int32)
        if self._linear:
            flat = weight.flatten(1)
            self._packed = pack_linear(flat) or torch.ops.onednn.qlinear_prepack(flat, None)
        else:
            # Scale and zero point of the inputs only say that there are some; calls bring their own.
            rest = (scale, 1.0, 1, *_moves(geo), None)
            self._packed = pack_conv(weight, geo) or torch.ops.onednn.qconv_prepack(weight, *rest)

    def _multiply(self, layer: Layer, x: Tensor | Quantized, onto: Tensor | None) -> Tensor:
        self.pack(layer)
        values, qparams = layer.quantize_input(x)
        if self.spec.geometry is None:
            return self._multiply_rows(layer, Quantized(values, qparams), onto)
        values = values.contiguous(memory_format=torch.channels_last)
        if not (self._linear or isinstance(self._packed, PackedLinear)):
            scales = (self._packed, layer.scale, self._zeros)
            return _conv((values, *qparams, *scales), layer.bias, _moves(self.spec.geometry), onto)
        positions = Quantized(values.permute(0, 2, 3, 1), qparams)  # [b, h, w, c]
        onto = None if onto is None else onto.permute(0, 2, 3, 1)
        return self._multiply_rows(layer, positions, onto).permute(0, 3, 1, 2)

    def _multiply_rows(self, layer: Layer, x: Quantized, onto: Tensor | None) -> Tensor:
        packed = self._packed
        if isinstance(packed, PackedLinear):
            return packed.multiply(x, layer.scale, layer.bias, onto)
        return _linear((x.values, *x.qparams, packed, layer.scale, self._zeros), layer.bias, onto)


class WeightOnly(Reference):
    """int8 and int4 weights with float inputs: the reference, its weights dequantized in one pass.

    They are float32 for the length of a call, and equal to the reference's to the bit.
    """

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """What there is a kernel for; of a table's rows only a few are looked up."""
        return spec.rule.inputs == "float" and spec.rule.weights in DEQUANTIZERS and not spec.table

    def weight(self, layer: Layer) -> Tensor:
        """See `Reference`."""
        return DEQUANTIZERS[self.spec.rule.weights](layer.qweight, layer.scale, self.spec.shape)


def _linear(operands: tuple, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.float()
    if onto is None:
        return torch.ops.onednn.qlinear_pointwise(*operands, bias, *FLOAT_OUT, *NO_POST_OP)
    added = (1.0, 0, "add", 1.0)
    return torch.ops.onednn.qlinear_pointwise.binary(*operands, onto, bias, *FLOAT_OUT, *added, *NO_POST_OP)


def _conv(operands: tuple, bias: Tensor | None, geometry: tuple, onto: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.float()
    if onto is None:
        return torch.ops.onednn.qconv2d_pointwise(*operands, bias, *geometry, *FLOAT_OUT, *NO_POST_OP)
    summed = (1.0, 0, "sum", 1.0)  # into the memory of `onto`: convolutions have no other way
    return torch.ops.onednn.qconv2d_pointwise.binary(
        *operands, onto, bias, *geometry, *FLOAT_OUT, *summed, *NO_POST_OP
    )


def _moves(geo: Geometry) -> tuple:
    return geo.stride, geo.padding, geo.dilation, geo.groups
