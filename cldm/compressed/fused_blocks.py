"""Blocks of ldm as a fused model computes them; `cldm.compressed.quantized` says where they go.

All but `CudaResBlock` are for the CPU. What goes around a block is added inside its last layer.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.modules import vae
from ldm.modules.attention import GEGLU, BasicTransformerBlock, CrossAttention, SpatialTransformer
from ldm.modules.layers import ResBlock, Upsample, expand_batch
from quantize.activations import Quantized
from quantize.cpu.activations import geglu_quantize
from quantize.cpu.attention import attend_bf16, attend_int8
from quantize.layers import QuantLayer

TEXTS_KEPT = 2  # of a request: its prompt and its negative prompt, when they are computed apart


class FusedResBlock(ResBlock):
    """The time embedding is added inside the second norm, what goes around inside the last convolution."""

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.out_layers[0](self.in_layers(x), self.emb_layers(emb))
        if isinstance(self.skip_connection, nn.Identity):  # x may be a skip too, which later blocks read
            return x + self.out_layers[-1](h)
        return _add(self.out_layers[-1], h, self.skip_connection(x))


class CudaResBlock(ResBlock):
    """SiLU and the sum with the time embedding happen inside the norms."""

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[-1](self.in_layers[0](x))
        h = self.out_layers[-1](self.out_layers[0](h, self.emb_layers(emb)))
        return self.skip_connection(x) + h


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
        h = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[-2])  # no copy: channels lie last
        return _add(self.proj_out, h, expand_batch(x, h))


class FusedTransformerBlock(BasicTransformerBlock):
    """Its input is added inside the last layer of each part."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, n, c]; context: [b, m, d] -> [b, n, c]."""
        x = expand_batch(_add(self.attn1.to_out[0], self.attn1.attend_heads(self.norm1(x)), x), context)
        x = _add(self.attn2.to_out[0], self.attn2.attend_heads(self.norm2(x), context), x)
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
        kept, read = self.kept, tuple(_qparams(layer) for layer in (self.to_k, self.to_v))
        for text, read_then, made in kept:
            if read == read_then and torch.equal(text, context):
                return made
        made = super().keys_and_values(context)
        self.kept = ((context.clone(), read, made), *kept[: TEXTS_KEPT - 1])  # callers may reuse theirs
        return made

    def attend_heads(self, x: Tensor | Quantized, context: Tensor | None = None) -> Tensor | Quantized:
        """As bytes where the layer behind takes them. Without slices: no step of it holds all logits."""
        q = self.split(self.to_q(x))  # [b, heads, n, d]
        # Models that ask for float32 here have logits of hundreds, of which bytes would miss whole units.
        attend = attend_bf16 if self.upcast else attend_int8
        k, v = self.keys_and_values(x if context is None else context)
        out = attend(q, k, v, _qparams(self.to_out[0]))
        return out if isinstance(out, Quantized) else rearrange(out, "b h n d -> b n (h d)")


class QuantGEGLU(GEGLU):
    """Hands bytes to the layer in `consumers`."""

    consumers: tuple[QuantLayer]

    def forward(self, x: Tensor | Quantized) -> Quantized:
        """[b, n, dim_in] -> bytes [b, n, dim_out]."""
        qparams, proj = self.consumers[0].input_qparams(), self.proj
        return proj.gated(x, qparams) if isinstance(proj, QuantLayer) else geglu_quantize(proj(x), qparams)


class FusedUpsample(Upsample):
    """Its convolution upsamples too."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, 2h, 2w]."""
        return self.conv(x)


def _add(layer: nn.Module, x: Tensor | Quantized, onto: Tensor) -> Tensor:
    """onto + layer(x); nobody may read `onto` any more."""
    return layer(x, onto=onto) if isinstance(layer, QuantLayer) else onto + layer(x)


def _qparams(layer: nn.Module) -> tuple | None:
    return layer.input_qparams() if isinstance(layer, QuantLayer) else None
