"""Fusing for the CPU: what lies between the int8 layers of a loaded model, in few passes over memory.

How it is done says `cldm.compressed`. Activations are float32 and lie channels last throughout, so that
positions are tokens as they are; keys and values of the text are computed once a text, not at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from cldm.cldm import ControlledUnetModel, ControlNet
from cldm.compressed.fused_blocks import (
    FusedAttention,
    FusedResBlock,
    FusedResnetBlock,
    FusedTransformer,
    FusedTransformerBlock,
    FusedUpsample,
    QuantGEGLU,
)
from cldm.lite import Block
from ldm.modules import vae
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, FeedForward, SpatialTransformer
from ldm.modules.layers import ResBlock, Upsample
from ldm.modules.unet import UNetModel
from quantize.fused.convolutions import UpsampledConv2d, to_bf16
from quantize.fused.norms import fuse_quantize, fuse_silu, read_alike
from quantize.model import quantized_layers


def fuse_cpu(model: nn.Module) -> None:
    """Let blocks of `model`, loaded and on the CPU, compute the same with fewer passes over memory.

    What has no quantized layers, or ranges that do not allow it, stays as it is. Models whose float weights
    are not float32 stay as a whole.
    """
    if any(one.is_floating_point() and one.dtype != torch.float32 for one in model.parameters()):
        return
    for module in list(model.modules()):
        if rule := RULES.get(type(module)):
            rule(module)


def refuse_nan(network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Before a call of `network`: ValueError if a tensor that it is given holds NaN or infinity.

    Bytes cannot carry them: layers with ranges from calibration would make numbers of them, unseen.
    """
    for given in (*args, *kwargs.values()):
        for tensor in given if isinstance(given, list | tuple) else [given]:
            # Sums keep what is not finite, and are quicker than a test of each number.
            if isinstance(tensor, Tensor) and not torch.isfinite(tensor.sum()):
                name = type(network).__name__
                raise ValueError(f"{name} was given NaN or infinity: only numbers can be quantized")


def _res_block(block: ResBlock) -> None:
    pairs = (block.in_layers[0], block.in_layers[-1]), (block.out_layers[0], block.out_layers[-1])
    if all(fuse_silu(norm, conv) for norm, conv in pairs):
        block.in_layers[1] = block.out_layers[1] = nn.Identity()
        block.__class__ = FusedResBlock


def _resnet_block(block: vae.ResnetBlock) -> None:
    pairs = (block.norm1, block.conv1), (block.norm2, block.conv2)
    if all(fuse_silu(norm, conv) for norm, conv in pairs):
        block.__class__ = FusedResnetBlock


def _transformer(block: SpatialTransformer) -> None:
    if not block.use_linear:  # else positions are turned into tokens between the norm and the layer
        fuse_quantize(block.norm, block.proj_in)
        block.__class__ = FusedTransformer


def _transformer_block(block: BasicTransformerBlock) -> None:
    fuse_quantize(block.norm1, block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    fuse_quantize(block.norm2, block.attn2.to_q)
    fuse_quantize(block.norm3, block.ff.net[0].proj)
    block.__class__ = FusedTransformerBlock


def _attention(layer: CrossAttention) -> None:
    layer.__class__ = FusedAttention


def _feed_forward(layer: FeedForward) -> None:
    gate, _, out = layer.net
    if read_alike([out]):
        gate.__class__, gate.consumers = QuantGEGLU, (out,)
        layer.net[1] = nn.Identity()  # dropout, which takes no bytes


def _upsample(layer: Upsample) -> None:
    if read_alike([layer.conv]):
        layer.__class__, layer.conv.__class__ = FusedUpsample, UpsampledConv2d


def _network(network: nn.Module) -> None:
    """The U-Net, or a branch with its shape."""
    network.register_forward_pre_hook(refuse_nan, with_kwargs=True)
    _prepare_at_first_call(network)
    _channels_last(network)
    if isinstance(network, UNetModel) and fuse_silu(network.out[0], network.out[-1]):
        network.out[1] = nn.Identity()


def _branch(network: ControlNet) -> None:
    _network(network)
    # Without such layers the branch is as exact as can be, and stays so.
    if any(layer.accepts_quantized for _, layer in quantized_layers(network)):
        for conv, *_ in (*network.zero_convs, network.middle_block_out):
            to_bf16(conv)


def _prepare_at_first_call(network: nn.Module) -> None:
    """Pack all weights for the backend side by side: layer by layer, most of a first step would be that."""

    def prepare(_: nn.Module, _args: tuple) -> None:
        waiting.remove()
        layers = [layer for _, layer in quantized_layers(network)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(methodcaller("prepare"), layers))

    waiting = network.register_forward_pre_hook(prepare)


def _channels_last(network: nn.Module) -> None:
    """Let float convolutions output channels last, which what follows them keeps up."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)


# What is done to the modules of a class; subclasses are others.
RULES: Mapping[type, Callable[[Any], None]] = {
    ResBlock: _res_block,
    SpatialTransformer: _transformer,
    BasicTransformerBlock: _transformer_block,
    CrossAttention: _attention,
    FeedForward: _feed_forward,
    Upsample: _upsample,
    Block: lambda block: fuse_quantize(block.norm, block.mlp[0]),
    UNetModel: _network,
    ControlledUnetModel: _network,
    ControlNet: _branch,
    vae.ResnetBlock: _resnet_block,
    vae.AttnBlock: lambda block: fuse_quantize(block.norm, block.q, block.k, block.v),
    vae.Encoder: lambda network: _channels_last(network.conv_in),
    vae.Decoder: lambda network: _channels_last(network.conv_in),
}
