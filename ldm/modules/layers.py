"""Convolutional pieces of the U-Net: time embedding, residual block, resampling.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", with the parameter names of the
published Stable Diffusion files. GroupNorm eps is 1e-5 here and 1e-6 in the transformers and the VAE: both
are as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_PERIOD = 10_000  # of the sinusoidal embedding: Vaswani et al. 2017, section 3.5


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of `timesteps`, cosines first: [b] -> float32 [b, dim]."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)  # [b, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """`module` with every parameter set to zero, so that it starts as "adds nothing"."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def maybe_checkpoint(enabled: bool, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """`function(*inputs)`; when enabled, activations are dropped and computed again in the backward pass."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def shared_batch(context: Tensor | None, *inputs: Tensor) -> int:
    """How many rows of all `inputs` [b, ...] to compute until the text `context` [b, n, d] comes in.

    Half of them where guidance gives the same rows twice, each time with another text; all b otherwise. All
    too where gradients are wanted, which belong to every row, and on a GPU, which would be waited for.
    """
    rows = len(inputs[0])
    half, odd = divmod(rows, 2)  # guidance puts both passes behind each other
    if context is None or len(context) != rows or odd:
        return rows
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu":
        return rows
    return half if all(torch.equal(one[:half], one[half:]) for one in inputs) else rows


def expand_batch(x: Tensor, like: Tensor | None) -> Tensor:
    """x [a, ...], behind itself until it has the rows of `like` [b, ...], a multiple; x alone for None."""
    if like is None or len(x) >= len(like):
        return x
    return torch.cat([x] * (len(like) // len(x)))  # unlike Tensor.repeat it keeps channels last


def cat_skip(h: Tensor, skip: Tensor, residual: Tensor | None = None) -> Tensor:
    """[b, c + d, h, w]: `h` [b, c, h, w] and behind it `skip` [b, d, h, w], plus `residual` if there is one.

    Where no gradient is wanted the sum is written to its place at once, and not copied there.
    """
    if residual is None:
        return torch.cat([h, skip], dim=1)
    if torch.is_grad_enabled() or not h.dtype == skip.dtype == residual.dtype:
        return torch.cat([h, skip + residual], dim=1)
    batch, channels, *size = h.shape
    last = h.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        batch, channels + skip.shape[1], *size, dtype=h.dtype, device=h.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )  # fmt: skip
    out[:, :channels] = h
    torch.add(skip, residual, out=out[:, channels:])
    return out


class TimestepBlock(nn.Module):
    """A block whose forward takes the time embedding beside its input."""


class ResBlock(TimestepBlock):
    """Residual block with the time embedding added between its two convolutions."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, *, dropout: float = 0.0,
                 groups: int = 32, use_checkpoint: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [b, c, h, w]; emb: [b, e] -> [b, out_channels, h, w]."""
        return maybe_checkpoint(self.use_checkpoint, self._forward, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + self.emb_layers(emb)[:, :, None, None]  # [b, out_channels, 1, 1]: the same at every position
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, h/2, w/2]."""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
