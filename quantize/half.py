"""Convolutions that stay float, multiplied in bfloat16: twice as fast where the CPU has instructions for it.

A convolution of a loaded model becomes one of these by changing its class: name and float weights stay.
Weights and inputs are rounded to 8 bits of fraction, sums are float32: an error of some 0.3 %. For inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NO_POST_OP = ("none", [], "")


class HalfConv(nn.Conv2d):
    """Keeps a rounded copy of its weights in oneDNN's own form, made at the first call."""

    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, out_channels, h', w'], in the dtype of x; channels last where x is."""
        walk = self.padding, self.stride, self.dilation, self.groups
        if self.packed is None:
            weight = self.weight.detach().bfloat16()
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *walk, None)
        operands = x.bfloat16(), self.packed, self.bias
        return torch.ops.mkldnn._convolution_pointwise(*operands, *walk, *NO_POST_OP).to(x.dtype)


def halve(layer: nn.Module) -> bool:
    """Let `layer`, if it is a float32 convolution padded by zeros, multiply in bfloat16; whether it does.

    It stays as it is on CPUs without instructions for that, where it would only be slower.
    """
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not plain or layer.weight.dtype != torch.float32 or not torch.cpu._is_avx512_bf16_supported():
        return False
    layer.__class__ = HalfConv
    return True
