"""Every scheme in plain torch, on any device: slow, and by definition right."""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.activations import Quantized
from quantize.arithmetic import FP8_PEAK, TINY, check_finite, to_fp8
from quantize.backends.base import Buffers, Inputs, out_dtype
from quantize.spec import LayerSpec


class Reference:
    """Decodes the weights for each call and forgets them after it."""

    packed = False

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._inputs = Inputs(spec)

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """Everything."""
        return True

    def __call__(self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None) -> Tensor:
        """See `Backend`."""
        rule = self.spec.rule
        if self.spec.table:
            return self._rows(x, buffers)
        with torch.autocast(
            buffers["scale"].device.type, enabled=False
        ):  # its bfloat16 does not even hold 257
            if rule.weights == "int8" and rule.inputs != "float":
                return self._byte_inputs(x, buffers, bias).to(out_dtype(x))
            values = x.float() if isinstance(x, Quantized) else x
            if rule.inputs == "float":
                return self._float_inputs(values, buffers, bias)
            return self._fp8_inputs(values, buffers, bias).to(out_dtype(x))

    def _rows(self, ids: Tensor, buffers: Buffers) -> Tensor:
        rows, width = ids.flatten(), self.spec.shape[1]
        values = self.spec.format.dequantize(
            buffers["qweight"][rows], buffers["scale"][rows], (len(rows), width)
        )
        return values.view(*ids.shape, width)

    def weight(self, buffers: Buffers) -> Tensor:
        """What the codes stand for, float32."""
        return self.spec.format.dequantize(buffers["qweight"], buffers["scale"], self.spec.shape)

    def _float_inputs(self, x: Tensor, buffers: Buffers, bias: Tensor | None) -> Tensor:
        weight = self.weight(buffers).to(x.dtype)
        return self.spec.apply(x, weight, None if bias is None else bias.to(x.dtype))

    def _byte_inputs(self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None) -> Tensor:
        values, qparams = self._inputs.quantize(x, buffers)
        values = values.float() - qparams.zero
        return self._scaled(self.spec.apply(values, buffers["qweight"].float()), qparams.scale, buffers, bias)

    def _fp8_inputs(self, x: Tensor, buffers: Buffers, bias: Tensor | None) -> Tensor:
        check_finite(x, "a layer's input")
        peak = x.detach().abs().max().item() if x.numel() else 0.0
        scale = peak / FP8_PEAK if peak / FP8_PEAK >= TINY else 1.0
        values = to_fp8(x, scale).float()
        return self._scaled(self.spec.apply(values, buffers["qweight"].float()), scale, buffers, bias)

    def _scaled(self, sums: Tensor, scale: float, buffers: Buffers, bias: Tensor | None) -> Tensor:
        out = sums * self.spec.per_channel(buffers["scale"] * scale)
        return out if bias is None else out + self.spec.per_channel(bias.float())
