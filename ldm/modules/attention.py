"""Spatial transformer: self-attention over positions, cross-attention to the text, gated feed-forward.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3. Sub-modules
are registered in the published order (attn1, ff, attn2, norms), which is not the order in which they run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.layers import expand_batch, maybe_checkpoint, zero_module

TRANSFORMER_NORM_EPS = 1e-6  # the published transformers and VAE; ResBlocks keep torch's 1e-5


def attend(q: Tensor, k: Tensor, v: Tensor, slice_rows: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for [b, heads, n, d] each (Vaswani et al. 2017, eq. 1).

    slice_rows: how many batch-times-head rows to attend at once; smaller needs less memory, same numbers.
    """
    if slice_rows is None or slice_rows >= q.shape[0] * q.shape[1]:
        return F.scaled_dot_product_attention(q, k, v)
    # Each row stays a batch of one head: torch's fused kernels, which hold no [n, n] matrix, want four axes.
    rows = (rearrange(t, "b h n d -> (b h) 1 n d").split(slice_rows) for t in (q, k, v))
    out = torch.cat([F.scaled_dot_product_attention(*part) for part in zip(*rows, strict=True)])
    return rearrange(out, "(b h) 1 n d -> b h n d", h=q.shape[1])


class CrossAttention(nn.Module):
    """Multi-head attention from image positions to `context`, or to themselves where there is none."""

    # Set by `slice_attention`, on a model's layers or for the process: old scripts ask before they build one.
    slice_rows: int | None = None

    def __init__(self, query_dim: int, context_dim: int | None = None, *, heads: int = 8, dim_head: int = 64,
                 dropout: float = 0.0, upcast: bool = False) -> None:  # fmt: skip
        super().__init__()
        inner = heads * dim_head
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))  # published: to_out.0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, n, c]; context: [b, m, d] -> [b, n, c]."""
        return self.to_out(self.attend_heads(x, context))

    def attend_heads(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What the heads find, before it is projected: [b, n, heads * d]."""
        q = self.split(self.to_q(x))  # [b, heads, n, d]
        k, v = self.keys_and_values(x if context is None else context)
        if self.upcast and q.dtype != torch.float32:
            # SD 2.1's logits leave the range of fp16; autocast would bring them back to it.
            with torch.autocast(q.device.type, enabled=False):
                out = attend(q.float(), k.float(), v.float(), self.slice_rows).to(x.dtype)
        else:
            out = attend(q, k, v, self.slice_rows)
        return rearrange(out, "b h n d -> b n (h d)")

    def split(self, projected: Tensor) -> Tensor:
        """[b, n, heads * d] -> [b, heads, n, d]."""
        return rearrange(projected, "b n (h d) -> b h n d", h=self.heads)

    # An inference engine puts its own in place of `attend_heads` and this (`cldm.compressed.fused_blocks`).
    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of context [b, m, d]: [b, heads, m, d] each."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))


def slice_attention(rows: int | None, model: nn.Module | None = None) -> None:
    """Let attention layers of `model` work on `rows` batch-times-head rows at a time; None for all at once.

    Without a model it is the whole process's default. Raises ValueError below 1.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"slice_attention(rows={rows}): use at least 1 row, or None for no slicing")
    if model is None:
        CrossAttention.slice_rows = rows
        return
    for layer in model.modules():
        if isinstance(layer, CrossAttention):
            layer.slice_rows = rows


class GEGLU(nn.Module):
    """Linear layer whose second half, through an exact GELU, gates the first (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, dim_in] -> [b, n, dim_out]."""
        value, gate = self.proj(x).chunk(2, dim=-1)  # [b, n, dim_out] each
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated feed-forward layer, four times as wide inside."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * mult), nn.Dropout(dropout), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, dim] -> [b, n, dim]."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each on a LayerNorm and added to its input."""

    def __init__(self, dim: int, context_dim: int | None, *, heads: int, dim_head: int, dropout: float = 0.0,
                 upcast: bool = False) -> None:  # fmt: skip
        super().__init__()
        options = {"heads": heads, "dim_head": dim_head, "dropout": dropout, "upcast": upcast}
        self.attn1 = CrossAttention(dim, **options)
        self.ff = FeedForward(dim, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, **options)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, n, c], or rows that several texts share; context: [b, m, d] -> [b, n, c]."""
        x = expand_batch(x + self.attn1(self.norm1(x)), context)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, added to it.

    use_linear: project by Linear layers (SD 2.1) and not by 1x1 convolutions (SD 1.5); the same arithmetic.
    """

    def __init__(  # noqa: PLR0913 - the settings of the published yaml files, each read here
        self, channels: int, context_dim: int | None, *, heads: int, dim_head: int, depth: int = 1,
        dropout: float = 0.0, groups: int = 32, use_linear: bool = False, upcast: bool = False,
        use_checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = heads * dim_head
        self.use_linear, self.use_checkpoint = use_linear, use_checkpoint
        self.norm = nn.GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, inner) if use_linear else nn.Conv2d(channels, inner, 1)
        options = {"heads": heads, "dim_head": dim_head, "dropout": dropout, "upcast": upcast}
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, context_dim, **options) for _ in range(depth)
        )
        out = nn.Linear(inner, channels) if use_linear else nn.Conv2d(inner, channels, 1)
        self.proj_out = zero_module(out)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, c, h, w], or rows that several texts share; context: [b, m, d] -> [b, c, h, w]."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")  # positions are tokens
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = maybe_checkpoint(self.use_checkpoint, block, h, context)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height, w=width)
        return expand_batch(x, h) + (h if self.use_linear else self.proj_out(h))
