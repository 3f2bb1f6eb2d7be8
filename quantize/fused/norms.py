"""Norms that hand bytes to the quantized layer behind them, in one pass over memory in place of several.

A norm of a loaded model becomes one of these by changing its class: name, place, numbers and hooks stay as
they are. What it hands on is `Quantized`, which quantized layers take and nothing else does. The bytes are
those that the layer would have made, up to the rounding of float sums. For inference alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantize.activations import Quantized
from quantize.backends.cuda import TensorCores, ranges_of
from quantize.cpu.activations import group_norm_quantize, group_norm_silu, layer_norm_quantize
from quantize.layers import QuantLayer

if TYPE_CHECKING:
    from quantize.triton.activations import CudaQuantized


class QuantGroupNorm(nn.GroupNorm):
    """Group norm, and SiLU if `silu`, as bytes for the layer in `consumers`."""

    consumers: tuple[QuantLayer]  # in a tuple, so that it is no child of the norm
    silu: bool

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Quantized:
        """Of x [b, c, h, w] + shift [b, c]; the bytes lie channels last."""
        parameters = self.num_groups, self.weight, self.bias, self.eps
        qparams = self.consumers[0].input_qparams()
        return group_norm_quantize(x, *parameters, silu=self.silu, qparams=qparams, shift=shift)


class GroupNormSiLU(nn.GroupNorm):
    """Group norm and SiLU as float32, for a layer that takes no bytes."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Of x [b, c, h, w] + shift [b, c]; the numbers lie channels last."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, shift)


class QuantLayerNorm(nn.LayerNorm):
    """Layer norm over the last axis as bytes for the layers in `consumers`, which read them alike."""

    consumers: tuple[QuantLayer, ...]

    def forward(self, x: Tensor) -> Quantized:
        """[..., d] -> bytes of that shape."""
        return layer_norm_quantize(x, self.weight, self.bias, self.eps, self.consumers[0].input_qparams())


class CudaGroupNorm(nn.GroupNorm):
    """As `QuantGroupNorm`, by a kernel of a GPU."""

    consumers: tuple[QuantLayer]
    silu: bool

    def forward(self, x: Tensor, shift: Tensor | None = None) -> CudaQuantized:
        """Of x [b, c, h, w] + shift [b, c]; the bytes lie channels last."""
        from quantize.triton.activations import group_norm_quantize

        return group_norm_quantize(self, x, ranges_of(self.consumers[0]), silu=self.silu, added=shift)


class CudaLayerNorm(nn.LayerNorm):
    """As `QuantLayerNorm`, by a kernel of a GPU."""

    consumers: tuple[QuantLayer, ...]

    def forward(self, x: Tensor) -> CudaQuantized:
        """[..., d] -> bytes of that shape."""
        from quantize.triton.activations import layer_norm_quantize

        return layer_norm_quantize(self, x, ranges_of(self.consumers[0]))


CPU_NORMS = {nn.GroupNorm: QuantGroupNorm, nn.LayerNorm: QuantLayerNorm}
CUDA_NORMS = {nn.GroupNorm: CudaGroupNorm, nn.LayerNorm: CudaLayerNorm}


def read_alike(layers: Sequence[nn.Module], *, on_gpu: bool = False) -> bool:
    """Whether all of `layers` take bytes, and the same ones: one look at their input then serves them all.

    on_gpu: they must compute on tensor cores too.
    """
    if not all(isinstance(layer, QuantLayer) and layer.accepts_quantized for layer in layers):
        return False
    if on_gpu and not all(isinstance(layer._compute, TensorCores) for layer in layers):
        return False
    first, *others = layers
    return all(_same_ranges(first, other) for other in others)


def fuse_quantize(norm: nn.Module, *layers: nn.Module, silu: bool = False, on_gpu: bool = False) -> bool:
    """Let `norm`, if it is a norm, hand bytes to `layers`, through SiLU if asked; whether that is possible.

    layers: all that read its output. Where it is not possible nothing changes.
    """
    made = (CUDA_NORMS if on_gpu else CPU_NORMS).get(type(norm))
    if made is None or norm.weight is None or not read_alike(layers, on_gpu=on_gpu):
        return False
    norm.__class__ = made  # in place: names, hooks and weights stay
    norm.consumers = layers
    if isinstance(norm, nn.GroupNorm):
        norm.silu = silu
    return True


def fuse_silu(norm: nn.Module, layer: nn.Module) -> bool:
    """Let `norm` and the SiLU behind it be one, as bytes if `layer`, the next, takes them; whether it is."""
    if fuse_quantize(norm, layer, silu=True):
        return True
    if type(norm) is not nn.GroupNorm or norm.weight is None or norm.weight.dtype != torch.float32:
        return False
    norm.__class__ = GroupNormSiLU
    return True


def _same_ranges(one: QuantLayer, other: QuantLayer) -> bool:
    if one.spec.rule.inputs != other.spec.rule.inputs or one.spec.ranges != other.spec.ranges:
        return False
    names = ("in_scale", "in_zero") if one.spec.rule.inputs == "static" else ()
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
