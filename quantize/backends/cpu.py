"""int8 layers by VNNI, x86's instructions for bytes times signed bytes summed in 32 bits.

Native kernels (`cpu_linear`, `cpu_conv`) compute the layers that they take, oneDNN, the library behind torch,
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
from quantize.backends.base import Buffers, Inputs, out_dtype
from quantize.backends.cpu_conv import pack_conv
from quantize.backends.cpu_linear import PackedLinear, pack_linear
from quantize.backends.reference import Reference
from quantize.cpu.activations import geglu_quantize
from quantize.cpu.dequantize import DEQUANTIZERS
from quantize.spec import Geometry, LayerSpec

log = logging.getLogger(__name__)

FLOAT_OUT = (1.0, 0, torch.float32)
NO_POST_OP = ("none", [], "")
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


def is_supported() -> bool:
    """Whether this machine can."""
    return lacks() is None


class Vnni:
    """int8 weights with dynamic or static inputs."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._inputs = Inputs(spec)
        self._packed: Tensor | PackedLinear | None = None
        self._zeros: Tensor | None = None
        geo = spec.geometry
        # A convolution that looks at one position is a Linear layer over them: up to four times as fast.
        self._linear = geo is None or (spec.shape[2:], geo) == ((1, 1), POINTWISE)

    @property
    def packed(self) -> bool:
        """See `Backend`."""
        return self._packed is not None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """int8 times int8 only: with float inputs there is nothing to gain from it."""
        return spec.rule.weights == "int8" and spec.rule.inputs != "float"

    def __call__(self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None) -> Tensor:
        """See `Backend`."""
        given = x.values if isinstance(x, Quantized) else x
        if not given.numel():  # oneDNN has no word for it
            weight = torch.empty(self.spec.shape, device="meta")
            shape = self.spec.apply(given.float().to("meta"), weight).shape
            return given.new_empty(shape, dtype=out_dtype(x))
        return self._multiply(x, buffers, bias, None).to(out_dtype(x))

    def add(self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None, onto: Tensor) -> Tensor:
        """See `Backend`: the sum is part of the multiplication, where `onto` lies as the output does."""
        layout = torch.contiguous_format if self.spec.geometry is None else torch.channels_last
        fits = onto.dtype == out_dtype(x) == torch.float32 and onto.is_contiguous(memory_format=layout)
        return (
            self._multiply(x, buffers, bias, onto) if fits and onto.numel() else onto + self(x, buffers, bias)
        )

    def gated(
        self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None, qparams: QParams | None
    ) -> Quantized:
        """See `Backend`: where the range is known, the numbers between are never in memory."""
        self.pack(buffers)
        packed, given = self._packed, x.values if isinstance(x, Quantized) else x
        known = qparams is not None and given.numel() and out_dtype(x) == torch.float32
        if not (known and isinstance(packed, PackedLinear) and packed.gates):
            return geglu_quantize(self(x, buffers, bias), qparams)
        return packed.gated(self._inputs.quantize(x, buffers), buffers["scale"], bias, qparams)

    def pack(self, buffers: Buffers) -> None:
        """Put the weights into the form that their kernel reads, where that was not done before."""
        weight, scale, geo = buffers["qweight"], buffers["scale"], self.spec.geometry
        if self._packed is not None or weight is None:  # another thread may be first
            return
        self._zeros = torch.zeros(scale.shape, dtype=torch.int32)
        if self._linear:
            flat = weight.flatten(1)
            self._packed = pack_linear(flat) or torch.ops.onednn.qlinear_prepack(flat, None)
        else:
            # Scale and zero point of the inputs only say that there are some; calls bring their own.
            rest = (scale, 1.0, 1, *_walk(geo), None)
            self._packed = pack_conv(weight, geo) or torch.ops.onednn.qconv_prepack(weight, *rest)

    def _multiply(
        self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None, onto: Tensor | None
    ) -> Tensor:
        self.pack(buffers)
        values, qparams = self._inputs.quantize(x, buffers)
        if self.spec.geometry is None:
            return self._multiply_rows(Quantized(values, qparams), buffers, bias, onto)
        values = values.contiguous(memory_format=torch.channels_last)
        if not (self._linear or isinstance(self._packed, PackedLinear)):
            scales = (self._packed, buffers["scale"], self._zeros)
            return _conv((values, *qparams, *scales), bias, _walk(self.spec.geometry), onto)
        positions = Quantized(values.permute(0, 2, 3, 1), qparams)  # [b, h, w, c]
        onto = None if onto is None else onto.permute(0, 2, 3, 1)
        return self._multiply_rows(positions, buffers, bias, onto).permute(0, 3, 1, 2)

    def _multiply_rows(
        self, x: Quantized, buffers: Buffers, bias: Tensor | None, onto: Tensor | None
    ) -> Tensor:
        packed, scale = self._packed, buffers["scale"]
        if isinstance(packed, PackedLinear):
            return packed.multiply(x, scale, bias, onto)
        return _linear((x.values, *x.qparams, packed, scale, self._zeros), bias, onto)


class WeightOnly(Reference):
    """int8 and int4 weights with float inputs: the reference, its weights dequantized in one pass.

    They are float32 for the length of a call, and equal to the reference's to the bit.
    """

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """What there is a kernel for; of a table's rows only a few are looked up."""
        return spec.rule.inputs == "float" and spec.rule.weights in DEQUANTIZERS and not spec.table

    def weight(self, buffers: Buffers) -> Tensor:
        """See `Reference`."""
        return DEQUANTIZERS[self.spec.rule.weights](buffers["qweight"], buffers["scale"], self.spec.shape)


def _linear(operands: tuple, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.float()
    if onto is None:
        return torch.ops.onednn.qlinear_pointwise(*operands, bias, *FLOAT_OUT, *NO_POST_OP)
    added = (1.0, 0, "add", 1.0)
    return torch.ops.onednn.qlinear_pointwise.binary(*operands, onto, bias, *FLOAT_OUT, *added, *NO_POST_OP)


def _conv(operands: tuple, bias: Tensor | None, walk: tuple, onto: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.float()
    if onto is None:
        return torch.ops.onednn.qconv2d_pointwise(*operands, bias, *walk, *FLOAT_OUT, *NO_POST_OP)
    summed = (1.0, 0, "sum", 1.0)  # into the memory of `onto`: convolutions have no other way
    return torch.ops.onednn.qconv2d_pointwise.binary(
        *operands, onto, bias, *walk, *FLOAT_OUT, *summed, *NO_POST_OP
    )


def _walk(geo: Geometry) -> tuple:
    return geo.stride, geo.padding, geo.dilation, geo.groups
