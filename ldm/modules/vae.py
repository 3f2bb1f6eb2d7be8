"""Encoder and decoder of the variational autoencoder, at 1/8 resolution in Stable Diffusion.

Esser et al. 2021, "Taming Transformers", with attention only in the middle. Key names are the published ones.
Downsampling pads right and below only: that is how the published weights were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.attention import TRANSFORMER_NORM_EPS, attend
from ldm.modules.layers import Upsample
from ldm.util import config_from


@dataclass(frozen=True)
class VAEConfig:
    """`ddconfig` of the published yaml files; num_groups is GroupNorm's, 0 for a small model without any."""

    ch: int  # of the finest resolution
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int  # of the latent, before `quant_conv`
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = True  # means and log-variances
    num_groups: int = 32

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> VAEConfig:
        """The config behind a published `ddconfig`.

        Raises ValueError for an unknown name, and for attention outside the middle, which nobody published.
        """
        if params.get("attn_resolutions"):
            raise ValueError("ddconfig.attn_resolutions must be empty: attention is only in the VAE's middle")
        return config_from(cls, params, "ddconfig", frozenset({"resolution", "attn_resolutions", "dropout"}))


def _norm(groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS) if groups else nn.Identity()


class ResnetBlock(nn.Module):
    """Residual block without a time embedding."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, H, W] -> [b, out_channels, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(groups, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, h, w]."""
        normed = self.norm(x)  # [b, c, h, w]
        q, k, v = (rearrange(p(normed), "b c h w -> b 1 (h w) c") for p in (self.q, self.k, self.v))
        out = rearrange(attend(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[-2])
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Halve height and width, padding on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, H, W] -> [b, c, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, h, w]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The residual blocks of one resolution; `attn` is empty and kept for its published place."""

    def __init__(self, channels: Sequence[int], groups: int) -> None:
        super().__init__()
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.block = nn.ModuleList(ResnetBlock(before, after, groups) for before, after in pairs)
        self.attn = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """Through every block, then the resampling where there is one."""
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Image -> mean and log-variance of the latent."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            stage = Level([before, *[after] * config.num_res_blocks], config.num_groups)
            if level + 1 < len(widths):
                stage.downsample = Downsample(after)
            self.down.append(stage)
        self.mid = Middle(widths[-1], config.num_groups)
        self.norm_out = _norm(config.num_groups, widths[-1])
        out_channels = config.z_channels * (2 if config.double_z else 1)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, H, W] in [-1, 1] -> [b, 2 z_channels, H/f, W/f], f = 2 ** (levels - 1)."""
        h = self.conv_in(x)  # [b, ch, H, W]
        for stage in self.down:
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent -> image."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.num_groups)
        stages = []
        for level, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            stage = Level([before, *[after] * (config.num_res_blocks + 1)], config.num_groups)
            if level:
                stage.upsample = Upsample(after)
            stages.append(stage)
        self.up = nn.ModuleList(stages)  # stored from fine to coarse, run from coarse to fine
        self.norm_out = _norm(config.num_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[b, z_channels, h, w] -> [b, 3, H, W], about [-1, 1]."""
        h = self.mid(self.conv_in(z))  # [b, c, h, w], the widest
        for stage in reversed(self.up):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))
