"""The CPU engine: what lies between the int8 layers of a loaded model, in few walks over memory.

Blocks of ldm and cldm get another class in place: children, names and numbers stay. Norms and gates hand
bytes to the layers behind them, activations lie channels last throughout, so that positions are tokens as
they are, and keys and values of the text are computed once a text and not at every step. The results are the
layers' own, up to the rounding of float sums. For inference alone, on float32 activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cldm.cldm import ControlledUnetModel, ControlNet
from cldm.lite import Block
from ldm.modules import vae
from ldm.modules.attention import (
    GEGLU,
    BasicTransformerBlock,
    CrossAttention,
    FeedForward,
    SpatialTransformer,
)
from ldm.modules.layers import ResBlock, Upsample, repeat_rows
from ldm.modules.unet import UNetModel
from quantize.activations import Quantized
from quantize.attention import attend_bf16, attend_int8
from quantize.fused import feed_bytes, feed_silu, read_alike
from quantize.kernels import geglu_quantize
from quantize.layers import QuantLayer
from quantize.model import quantized_layers

TEXTS_KEPT = 2  # of a request: its prompt and its negative prompt, when they are computed apart


class FusedResBlock(ResBlock):
    """The time embedding is added inside the second norm, what goes around inside the last convolution."""

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.out_layers[0](self.in_layers(x), self.emb_layers(emb))
        if isinstance(self.skip_connection, nn.Identity):  # x may be a skip too, which later blocks read
            return x + self.out_layers[-1](h)
        return _add(self.out_layers[-1], h, self.skip_connection(x))


class FusedResnetBlock(vae.ResnetBlock):
    """Each norm and the SiLU behind it are one."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, H, W] -> [b, out_channels, H, W]."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class FusedTransformer(SpatialTransformer):
    """Between 1x1 convolutions; its input is added inside the last of them."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, c, h, w]; context: [b, m, d] -> [b, c, h, w]."""
        tokens = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        h = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[-2])
        return _add(self.proj_out, h, repeat_rows(x, h))


class FusedTransformerBlock(BasicTransformerBlock):
    """Its input is added inside the last layer of each part."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, n, c]; context: [b, m, d] -> [b, n, c]."""
        x = repeat_rows(_add(self.attn1.to_out[0], self.attn1.mix(self.norm1(x)), x), context)
        x = _add(self.attn2.to_out[0], self.attn2.mix(self.norm2(x), context), x)
        gate, _, out = self.ff.net
        return _add(out, gate(self.norm3(x)), x)


class FusedAttention(CrossAttention):
    """Attends on bytes, and keeps the keys and values of the last texts."""

    # Of (text, how its bytes were read, keys and values); replaced as a whole, so that threads may share it.
    kept: tuple[tuple[Tensor, tuple, tuple[Tensor, Tensor]], ...] = ()

    def keys_and_values(self, context: Tensor | Quantized) -> tuple[Tensor, Tensor]:
        """Of context [b, m, d]: [b, heads, m, d] each."""
        if isinstance(context, Quantized):  # positions, new at every step
            return super().keys_and_values(context)
        kept, read = self.kept, tuple(_affine(layer) for layer in (self.to_k, self.to_v))
        for text, read_then, made in kept:
            if read == read_then and torch.equal(text, context):
                return made
        made = super().keys_and_values(context)
        self.kept = ((context.clone(), read, made), *kept[: TEXTS_KEPT - 1])
        return made

    def mix(self, x: Tensor | Quantized, context: Tensor | None = None) -> Tensor | Quantized:
        """As bytes where the layer behind takes them. Without slices: no step of it holds all logits."""
        q = self.split(self.to_q(x))
        # Models that ask for float32 here have logits of hundreds, of which bytes would miss whole units.
        attend = attend_bf16 if self.upcast else attend_int8
        k, v = self.keys_and_values(x if context is None else context)
        out = attend(q, k, v, _affine(self.to_out[0]))
        return out if isinstance(out, Quantized) else rearrange(out, "b h n d -> b n (h d)")


class ByteGEGLU(GEGLU):
    """Hands bytes to the layer in `feeds`."""

    feeds: tuple[QuantLayer]

    def forward(self, x: Tensor | Quantized) -> Quantized:
        """[b, n, dim_in] -> bytes [b, n, dim_out]."""
        affine, proj = self.feeds[0].input_affine(), self.proj
        return proj.gated(x, affine) if isinstance(proj, QuantLayer) else geglu_quantize(proj(x), affine)


class ByteUpsample(Upsample):
    """Repeats bytes, a quarter of what the numbers take."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, 2h, 2w]."""
        codes, affine = self.conv.to_bytes(x)
        return self.conv(Quantized(F.interpolate(codes, scale_factor=2.0, mode="nearest"), affine))


def fuse(model: nn.Module) -> None:
    """Make `model`, loaded and on the CPU, an engine: its blocks compute the same with fewer walks.

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
            # Sums keep what is not finite, and are quicker than a look at each number.
            if isinstance(tensor, Tensor) and not torch.isfinite(tensor.sum()):
                name = type(network).__name__
                raise ValueError(f"{name} was given NaN or infinity: only numbers can be quantized")


def _add(layer: nn.Module, x: Tensor | Quantized, onto: Tensor) -> Tensor:
    """onto + layer(x); nobody may read `onto` any more."""
    return layer(x, onto=onto) if isinstance(layer, QuantLayer) else onto + layer(x)


def _affine(layer: nn.Module) -> tuple | None:
    return layer.input_affine() if isinstance(layer, QuantLayer) else None


def _res_block(block: ResBlock) -> None:
    pairs = (block.in_layers[0], block.in_layers[-1]), (block.out_layers[0], block.out_layers[-1])
    if all(feed_silu(norm, conv) for norm, conv in pairs):
        block.in_layers[1] = block.out_layers[1] = nn.Identity()
        block.__class__ = FusedResBlock


def _resnet_block(block: vae.ResnetBlock) -> None:
    pairs = (block.norm1, block.conv1), (block.norm2, block.conv2)
    if all(feed_silu(norm, conv) for norm, conv in pairs):
        block.__class__ = FusedResnetBlock


def _transformer(block: SpatialTransformer) -> None:
    if not block.use_linear:  # else positions are turned into tokens between the norm and the layer
        feed_bytes(block.norm, block.proj_in)
        block.__class__ = FusedTransformer


def _transformer_block(block: BasicTransformerBlock) -> None:
    feed_bytes(block.norm1, block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    feed_bytes(block.norm2, block.attn2.to_q)
    feed_bytes(block.norm3, block.ff.net[0].proj)
    block.__class__ = FusedTransformerBlock


def _feed_forward(layer: FeedForward) -> None:
    gate, _, out = layer.net
    if read_alike([out]):
        gate.__class__, gate.feeds = ByteGEGLU, (out,)
        layer.net[1] = nn.Identity()  # dropout, which takes no bytes


def _upsample(layer: Upsample) -> None:
    if read_alike([layer.conv]):
        layer.__class__ = ByteUpsample


def _network(network: nn.Module) -> None:
    """The U-Net, or a branch with its shape."""
    network.register_forward_pre_hook(refuse_nan, with_kwargs=True)
    _prepare_at_first_call(network)
    _channels_last(network)
    if isinstance(network, UNetModel) and feed_silu(network.out[0], network.out[-1]):
        network.out[1] = nn.Identity()


def _prepare_at_first_call(network: nn.Module) -> None:
    """Pack all weights for the backend side by side: layer by layer, most of a first step would be that."""

    def prepare(_: nn.Module, _args: tuple) -> None:
        waiting.remove()
        layers = [layer for _, layer in quantized_layers(network)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(QuantLayer.prepare, layers))

    waiting = network.register_forward_pre_hook(prepare)


def _channels_last(network: nn.Module) -> None:
    """Let float convolutions answer channels last, which what follows them keeps up."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)


# What is done to the modules of a class; subclasses are others.
RULES: Mapping[type, Callable[[Any], None]] = {
    ResBlock: _res_block,
    SpatialTransformer: _transformer,
    BasicTransformerBlock: _transformer_block,
    CrossAttention: lambda layer: setattr(layer, "__class__", FusedAttention),
    FeedForward: _feed_forward,
    Upsample: _upsample,
    Block: lambda block: feed_bytes(block.norm, block.mlp[0]),
    UNetModel: _network,
    ControlledUnetModel: _network,
    ControlNet: _network,
    vae.ResnetBlock: _resnet_block,
    vae.AttnBlock: lambda block: feed_bytes(block.norm, block.q, block.k, block.v),
    vae.Encoder: lambda network: _channels_last(network.conv_in),
    vae.Decoder: lambda network: _channels_last(network.conv_in),
}
