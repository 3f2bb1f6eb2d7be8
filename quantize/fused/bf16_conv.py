"""Convolutions that stay float, multiplied in bfloat16: twice as fast where the CPU has instructions for it.

A convolution of a loaded model becomes one of these by changing its class: name and float weights stay.
Weights and inputs are rounded to 8 bits of fraction, sums are float32: an error of some 0.3 %. For inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalfConv(nn.Conv2d):
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


def halve(layer: nn.Module) -> bool:
    """Let `layer`, if it is a float32 convolution, multiply in bfloat16; whether it does.

    It stays as it is on CPUs without instructions for that, where it would only be slower.
    """
    if type(layer) is not nn.Conv2d or layer.weight.dtype != torch.float32:
        return False
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    layer.__class__ = HalfConv
    return True
