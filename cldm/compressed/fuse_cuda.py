"""Fusing for NVIDIA GPUs: norms of a loaded model hand bytes to the layers behind them.

How it is done says `cldm.compressed`. The bytes are signed, made by the kernels of `quantize.triton`, which
never wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from ldm.modules.layers import ResBlock
from quantize.backends.cuda import TensorCores, ranges_of
from quantize.fused.norms import read_alike
from quantize.layers import QuantLayer

if TYPE_CHECKING:
    from quantize.triton.activations import CudaQuantized


class CudaGroupNorm(nn.GroupNorm):
    """Group norm, and SiLU if `silu`, as bytes for the layer in `consumers`, which is no child of it."""

    consumers: tuple[QuantLayer]
    silu: bool

    def forward(self, x: Tensor, shift: Tensor | None = None) -> CudaQuantized:
        """Of x [b, c, h, w] + shift [b, c]; the bytes lie channels last."""
        from quantize.triton.normalize import group_norm_quantize

        ranges = ranges_of(self.consumers[0])
        return group_norm_quantize(self, x, ranges, silu=self.silu, added=shift)


class CudaLayerNorm(nn.LayerNorm):
    """Layer norm over the last axis as bytes for the layers in `consumers`, which read them alike."""

    consumers: tuple[QuantLayer, ...]

    def forward(self, x: Tensor) -> CudaQuantized:
        """[..., d] -> bytes of that shape."""
        from quantize.triton.normalize import layer_norm_quantize

        return layer_norm_quantize(self, x, ranges_of(self.consumers[0]))


class CudaResBlock(ResBlock):
    """SiLU and the sum with the time embedding happen inside the norms."""

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[-1](self.in_layers[0](x))
        h = self.out_layers[-1](self.out_layers[0](h, self.emb_layers(emb)))
        return self.skip_connection(x) + h


def fuse_cuda(model: nn.Module) -> None:
    """Let norms of `model` write bytes, where all that reads them computes with bytes on a GPU.

    Convolutions that stayed float output channels last, as the quantized ones do.
    """
    for module in list(model.modules()):
        if rule := RULES.get(type(module)):
            rule(module)
        elif type(module) is nn.Conv2d:
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)


def _res_block(block: ResBlock) -> None:
    pairs = (block.in_layers[0], block.in_layers[-1]), (block.out_layers[0], block.out_layers[-1])
    if all(_read_alike(conv) for _, conv in pairs):
        for norm, conv in pairs:
            _feed(norm, conv, silu=True)
        block.__class__ = CudaResBlock


def _transformer(block: SpatialTransformer) -> None:
    if not block.use_linear:  # else positions are turned into tokens between the two
        _feed(block.norm, block.proj_in)


def _transformer_block(block: BasicTransformerBlock) -> None:
    _feed(block.norm1, block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    _feed(block.norm2, block.attn2.to_q)
    _feed(block.norm3, block.ff.net[0].proj)


def _feed(norm: nn.Module, *layers: nn.Module, silu: bool = False) -> None:
    """Let `norm` write bytes for `layers`, all that read its output, if they read them alike."""
    if _read_alike(*layers):
        norm.__class__ = {nn.GroupNorm: CudaGroupNorm, nn.LayerNorm: CudaLayerNorm}[type(norm)]
        norm.consumers = layers
        if isinstance(norm, CudaGroupNorm):
            norm.silu = silu


def _read_alike(*layers: nn.Module) -> bool:
    """Whether all of `layers` take bytes on a GPU, and the same ones."""
    return read_alike(layers) and all(isinstance(layer._compute, TensorCores) for layer in layers)


# What is done to the modules of a class; subclasses are others.
RULES: Mapping[type, Callable[[Any], None]] = {
    ResBlock: _res_block,
    SpatialTransformer: _transformer,
    BasicTransformerBlock: _transformer_block,
}
