"""Every scheme in plain torch, on any device: slow, and by definition right. Other backends extend it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quantize.activations import QParams, Quantized
from quantize.arithmetic import FP8_PEAK, TINY, check_finite, to_fp8
from quantize.cpu.activations import geglu_quantize
from quantize.schemes import LayerSpec


class Layer(Protocol):
    """What a backend sees of a quantized layer; in_scale and in_zero are there for static inputs alone."""

    qweight: Tensor | None
    scale: Tensor
    bias: Tensor | None
    in_scale: Tensor
    in_zero: Tensor
    spec: LayerSpec

    def quantize_input(self, x: Tensor | Quantized) -> Quantized:
        """x as bytes, as it is where it has them already."""
        ...


class Reference:
    """Computes one layer. This one dequantizes the weights for each call and forgets them after it.

    packed: whether it has the weights in a form of its own, so that the layer's may go.
    """

    packed = False  # plain codes are all it needs

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec

    @staticmethod
    def lacks() -> str | None:
        """What this machine lacks for it, in words; None when nothing."""
        return None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """Whether it has an own way for the scheme of `spec`."""
        return True

    def __call__(self, layer: Layer, x: Tensor | Quantized) -> Tensor:
        """The layer's output in the dtype of x, float32 for bytes."""
        rule = self.spec.rule
        if self.spec.table:
            return self._rows(layer, x)
        with torch.autocast(layer.scale.device.type, enabled=False):  # its bfloat16 does not even hold 257
            if rule.weights == "int8" and rule.inputs != "float":
                return self._byte_inputs(layer, x).to(out_dtype(x))
            values = x.float() if isinstance(x, Quantized) else x
            if rule.inputs == "float":
                return self._float_inputs(layer, values)
            return self._fp8_inputs(layer, values).to(out_dtype(x))

    def add(self, layer: Layer, x: Tensor | Quantized, onto: Tensor) -> Tensor:
        """The sum of `onto` and the output, in the memory of `onto` where that is quicker."""
        return onto + self(layer, x)

    def gated(self, layer: Layer, x: Tensor | Quantized, qparams: QParams | None) -> Quantized:
        """What `geglu_quantize` makes of the output."""
        return geglu_quantize(self(layer, x), qparams)

    def pack(self, layer: Layer) -> None:
        """Make the form of the weights that calls want, where there is one and it was not made before."""

    def weight(self, layer: Layer) -> Tensor:
        """What the layer's weights stand for, float32."""
        return self.spec.format.dequantize(layer.qweight, layer.scale, self.spec.shape)

    def _rows(self, layer: Layer, ids: Tensor) -> Tensor:
        rows, width = ids.flatten(), self.spec.shape[1]
        values = self.spec.format.dequantize(layer.qweight[rows], layer.scale[rows], (len(rows), width))
        return values.view(*ids.shape, width)

    def _float_inputs(self, layer: Layer, x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return self.spec.apply(x, self.weight(layer).to(x.dtype), bias)

    def _byte_inputs(self, layer: Layer, x: Tensor | Quantized) -> Tensor:
        values, (scale, zero) = layer.quantize_input(x)
        return self._scaled(layer, values.float() - zero, scale)

    def _fp8_inputs(self, layer: Layer, x: Tensor) -> Tensor:
        check_finite(x, "a layer's input")
        peak = x.detach().abs().max().item() if x.numel() else 0.0
        scale = peak / FP8_PEAK if peak / FP8_PEAK >= TINY else 1.0
        return self._scaled(layer, to_fp8(x, scale).float(), scale)

    def _scaled(self, layer: Layer, x: Tensor, scale: float) -> Tensor:
        sums = self.spec.apply(x, layer.qweight.float())
        out = sums * self.spec.per_channel(layer.scale * scale)
        return out if layer.bias is None else out + self.spec.per_channel(layer.bias.float())


def out_dtype(x: Tensor | Quantized) -> torch.dtype:
    """Of a layer's output for the input x."""
    return torch.float32 if isinstance(x, Quantized) else x.dtype


def empty_output(spec: LayerSpec, values: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer's output for no inputs, which kernels have no word for."""
    weight = torch.empty(spec.shape, device="meta")
    return values.new_empty(spec.apply(values.float().to("meta"), weight).shape, dtype=dtype)
