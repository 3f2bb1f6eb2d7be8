"""Models from quantized files: the yaml says what is built, the file holds its codes, blocks are fused.

How blocks are fused says `cldm.compressed`. On the CPU activations are float32 and lie channels last
throughout, so that positions are tokens as they are; keys and values of a text are computed once.
On GPUs norms write signed bytes by the kernels of `quantize.triton`, which never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from checkpoints.checkpoint import open_checkpoint
from cldm.cldm import ControlLDM, ControlledUnetModel, ControlNet
from cldm.compressed import fused_blocks as fused
from cldm.compressed.pruned import shrink_to_quantized
from cldm.lite import Block
from common.memory import keep_freed_memory
from ldm.config import create_meta_model
from ldm.modules import vae
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, FeedForward, SpatialTransformer
from ldm.modules.layers import ResBlock, Upsample
from ldm.modules.unet import UNetModel
from quantize.files.read import load_quantized, read_content
from quantize.fused.convolutions import UpsampledConv2d, to_bf16
from quantize.fused.norms import fuse_quantize, fuse_silu, read_alike
from quantize.model import quantized_layers
from quantize.selection import fingerprint


def load_quantized_model(
    config: str | Path | DictConfig, path: str | Path, *, device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> ControlLDM:  # fmt: skip
    """The model of a yaml with the weights of a file of `python -m quantize`, ready to run on `device`.

    dtype: of what is float. Errors as `cldm.model.create_model` and `quantize.files.read.load_quantized`.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        keep_freed_memory()  # before the first large tensor is made
    model = create_meta_model(config)
    if read_content(path).plan.fingerprint != fingerprint(model):  # of a pruned model
        shrink_to_quantized(model, open_checkpoint(path))
    load_quantized(model, path, device=device, dtype=dtype)
    model.eval()
    if kind == "cpu":
        fuse_cpu(model)
    if kind == "cuda":
        fuse_cuda(model)
    return model


def fuse_cpu(model: nn.Module) -> None:
    """Let blocks of `model`, loaded and on the CPU, compute the same with fewer passes over memory.

    What has no quantized layers, or ranges that do not allow it, stays as it is. Models whose float weights
    are not float32 stay as a whole.
    """
    if all(one.dtype == torch.float32 for one in model.parameters() if one.is_floating_point()):
        _apply(CPU_RULES, model)


def fuse_cuda(model: nn.Module) -> None:
    """Let norms of `model` write bytes, where all that reads them computes with bytes on a GPU.

    Convolutions that stayed float output channels last, as the quantized ones do.
    """
    _apply(CUDA_RULES, model)


def _apply(rules: Mapping[type, Callable[[Any], object]], model: nn.Module) -> None:
    for module in list(model.modules()):  # a list: rules replace children
        if rule := rules.get(type(module)):
            rule(module)


def _refuse_nan(network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Bytes carry no NaN: layers with ranges from calibration would make numbers of it, unseen."""
    for given in (*args, *kwargs.values()):
        for tensor in given if isinstance(given, list | tuple) else [given]:
            # Sums keep what is not finite, and are quicker than a test of each number.
            if isinstance(tensor, Tensor) and not torch.isfinite(tensor.sum()):
                name = type(network).__name__
                raise ValueError(f"{name} was given NaN or infinity: only numbers can be quantized")


def _res_block(block: ResBlock) -> None:
    if all(fuse_silu(norm, conv) for norm, conv in _pairs(block)):
        block.in_layers[1] = block.out_layers[1] = nn.Identity()
        block.__class__ = fused.FusedResBlock


def _cuda_res_block(block: ResBlock) -> None:
    if all(read_alike([conv], on_gpu=True) for _, conv in _pairs(block)):
        for norm, conv in _pairs(block):
            fuse_quantize(norm, conv, silu=True, on_gpu=True)
        block.__class__ = fused.CudaResBlock


def _pairs(block: ResBlock) -> tuple[tuple[nn.Module, nn.Module], ...]:
    """Its norms, with the convolutions behind them and a SiLU."""
    return (block.in_layers[0], block.in_layers[-1]), (block.out_layers[0], block.out_layers[-1])


def _resnet_block(block: vae.ResnetBlock) -> None:
    pairs = (block.norm1, block.conv1), (block.norm2, block.conv2)
    if all(fuse_silu(norm, conv) for norm, conv in pairs):
        block.__class__ = fused.FusedResnetBlock


def _transformer(block: SpatialTransformer, *, on_gpu: bool = False) -> None:
    if not block.use_linear:  # else positions are turned into tokens between the norm and the layer
        fuse_quantize(block.norm, block.proj_in, on_gpu=on_gpu)
        if not on_gpu:
            block.__class__ = fused.FusedTransformer


def _transformer_block(block: BasicTransformerBlock, *, on_gpu: bool = False) -> None:
    fuse_quantize(block.norm1, block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, on_gpu=on_gpu)
    fuse_quantize(block.norm2, block.attn2.to_q, on_gpu=on_gpu)
    fuse_quantize(block.norm3, block.ff.net[0].proj, on_gpu=on_gpu)
    if not on_gpu:
        block.__class__ = fused.FusedTransformerBlock


def _attention(layer: CrossAttention) -> None:
    layer.__class__ = fused.FusedAttention


def _feed_forward(layer: FeedForward) -> None:
    gate, _, out = layer.net
    if read_alike([out]):
        gate.__class__, gate.consumers = fused.QuantGEGLU, (out,)
        layer.net[1] = nn.Identity()  # dropout, which takes no bytes


def _upsample(layer: Upsample) -> None:
    if read_alike([layer.conv]):
        layer.__class__, layer.conv.__class__ = fused.FusedUpsample, UpsampledConv2d


def _network(network: nn.Module) -> None:
    """The U-Net, or a branch with its shape."""
    network.register_forward_pre_hook(_refuse_nan, with_kwargs=True)
    _prepare_at_first_call(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            _channels_last(layer)
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
        waiting.remove()  # once is enough: a layer that was missed packs itself
        layers = [layer for _, layer in quantized_layers(network)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(methodcaller("prepare"), layers))

    waiting = network.register_forward_pre_hook(prepare)


def _channels_last(layer: nn.Module) -> None:
    """Let a convolution that stayed float output channels last, which what follows it keeps up."""
    if isinstance(layer, nn.Conv2d):
        layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)


# What is done to the modules of a class; subclasses are others.
CPU_RULES: Mapping[type, Callable[[Any], object]] = {
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
CUDA_RULES: Mapping[type, Callable[[Any], object]] = {
    ResBlock: _cuda_res_block,
    SpatialTransformer: partial(_transformer, on_gpu=True),
    BasicTransformerBlock: partial(_transformer_block, on_gpu=True),
    nn.Conv2d: _channels_last,
}
