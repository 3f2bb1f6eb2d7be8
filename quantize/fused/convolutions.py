"""Convolutions that are computed otherwise: behind upsampling with a quarter of the products, or in bfloat16.

A layer of a loaded model becomes one of these by its class: name and weights stay. For inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize import native
from quantize.activations import Quantized
from quantize.backends.cpu_packed import PackedLinear, pack_linear
from quantize.backends.reference import out_dtype
from quantize.layers import QuantConv2d
from quantize.schemes import Geometry

TAPS = (3, 3)
ONE_PIXEL = Geometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
BAND_BYTES = 1 << 23  # of products at a time: a part of L3, so that the sums find them there
# `Upsampling` of quantize/native/upsample.cpp.
ARGUMENTS = native.structure("products bias out", "batch height width channels first rows threads")


class UpsampledConv2d(QuantConv2d):
    """The convolution of its input upsampled by 2; a QuantConv2d that takes bytes becomes one by its class.

    Without the native library, and with other kernels than 3x3, bytes are repeated and then convolved.
    """

    _taps: PackedLinear | None = None

    def prepare(self) -> None:
        """As of any quantized layer."""
        weight, fits = self.qweight, (self.spec.shape[2:], self.spec.geometry) == (TAPS, ONE_PIXEL)
        if self._taps is None and weight is not None and fits:  # another thread may be first
            self._taps = pack_linear(weight.permute(2, 3, 0, 1).flatten(0, 2))
        if self._taps is None:
            super().prepare()
        else:
            self.qweight = None

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """[b, c, h, w] -> [b, out, 2h, 2w], in the dtype of x, float32 for bytes."""
        self.prepare()
        values, qparams = self.quantize_input(x)
        if self._taps is None:
            repeated = Quantized(F.interpolate(values, scale_factor=2.0, mode="nearest"), qparams)
            return super().forward(repeated).to(out_dtype(x))
        positions = Quantized(values.permute(0, 2, 3, 1), qparams)  # [b, h, w, c]
        return self._sums(positions).permute(0, 3, 1, 2).to(out_dtype(x))

    def _sums(self, x: Quantized) -> Tensor:
        batch, height, width, _ = x.values.shape
        channels = self.spec.shape[0]
        out = torch.empty(batch, 2 * height, 2 * width, channels)
        bias = torch.zeros(channels) if self.bias is None else self.bias.detach().float().contiguous()
        scale = self.scale.float().repeat(TAPS[0] * TAPS[1])
        band = max(1, BAND_BYTES // max(1, 4 * batch * width * self._taps.outputs))
        for first in range(0, height, band):
            rows = Quantized(x.values[:, first : first + band], x.qparams)
            products = self._taps.multiply(rows, scale, None, None)  # [b, rows, w, 9 out]
            native.run(
                "fw_upsample", ARGUMENTS, products=products, bias=bias, out=out, batch=batch, height=height,
                width=width, channels=channels, first=first, rows=products.shape[1],
                threads=torch.get_num_threads(),
            )  # fmt: skip
        return out


class Bf16Conv2d(nn.Conv2d):
    """Keeps rounded copies of its weights, made at the first call.

    They lie as float weights do: oneDNN's own form saves a tenth, but depends on the size of the input, and
    a small one of another size then takes fifty times as long.
    """

    rounded: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, out_channels, h', w'], in the dtype of x; channels last where x is."""
        if self.rounded is None:
            bias = None if self.bias is None else self.bias.detach().bfloat16()
            self.rounded = self.weight.detach().bfloat16(), bias
        return self._conv_forward(x.bfloat16(), *self.rounded).to(x.dtype)


def to_bf16(layer: nn.Module) -> bool:
    """Let `layer`, if it is a float32 convolution, multiply in bfloat16; whether it does.

    It stays as it is on CPUs without instructions for that, where it would only be slower.
    """
    if type(layer) is not nn.Conv2d or layer.weight.dtype != torch.float32:
        return False
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    layer.__class__ = Bf16Conv2d
    return True
