"""MLP-lite: a control branch of pixel-wise MLPs in place of the copy of the U-Net's encoder.

All that depends on the hint image is computed once: at each of the U-Net's resolutions a few blocks on
its features, average pooling down to the next, and a zero convolution for each place that
ControlNet steers (Zhang et al. 2023). A step only scales the channels of the ready residuals by the timestep.
Beyond MLPs: depthwise convolutions (Liu et al. 2022, "A ConvNet for the 2020s", the block) and a way back up,
so that a position knows whether it lies inside an outline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.layers import timestep_embedding, zero_module
from ldm.modules.unet import UNetConfig
from ldm.util import config_from

PIXELS_PER_LATENT = 8  # three halvings: a patch is a latent position
EXPANSION = 2  # of the MLPs
TIME_FEATURES = 64  # between the timestep and the gains


@dataclass(frozen=True)
class LiteConfig:
    """Shape of a lite branch beside that of its U-Net.

    width: channels of the features as a share of the U-Net's. depth: blocks a resolution and direction.
    kernel: side of the depthwise convolutions, 0 for none. top_down: whether features come back up from the
    coarse resolutions. timed: whether residuals are scaled by the timestep.
    """

    width: float = 0.5  # at 64 channels half is little: models/tiny_lite.yaml takes all
    depth: int = 1
    kernel: int = 7  # as ConvNeXt has it
    top_down: bool = True
    timed: bool = True

    def __post_init__(self) -> None:
        if self.width <= 0 or self.depth < 1 or self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise ValueError(
                f"lite branch of width {self.width}, depth {self.depth}, kernel {self.kernel}: give a width "
                "above 0, a depth of 1 or more, and an odd kernel, or 0 for none"
            )


class ControlLite(nn.Module):
    """Hint image and timestep -> a residual for each skip and one for the middle; text plays no part."""

    def __init__(
        self, *, hint_channels: int = 3, lite: Mapping[str, Any] | None = None, **params: Any
    ) -> None:
        super().__init__()
        unet = UNetConfig.from_params(params)
        self.lite = config_from(LiteConfig, lite or {}, "the lite branch")
        self.model_channels = unet.model_channels
        widths = [max(1, round(self.lite.width * mult * unet.model_channels)) for mult in unet.channel_mult]
        self.places = _residual_places(unet)
        self.stem = nn.Conv2d(hint_channels * PIXELS_PER_LATENT**2, widths[0], 1)
        self.down = nn.ModuleList(self._blocks(width) for width in widths)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.widen = nn.ModuleList(nn.Conv2d(fine, coarse, 1) for fine, coarse in pairs)
        if self.lite.top_down:
            self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
            self.up = nn.ModuleList(self._blocks(fine) for fine, _ in pairs)
        self.zero_convs = nn.ModuleList(
            zero_module(nn.Conv2d(widths[level], channels, 1)) for level, channels in self.places
        )
        if self.lite.timed:
            self.time_gain = nn.Sequential(
                nn.Linear(unet.model_channels, TIME_FEATURES),
                nn.SiLU(),
                zero_module(nn.Linear(TIME_FEATURES, sum(channels for _, channels in self.places))),
            )

    def encode_hint(self, hint: Tensor) -> list[Tensor]:
        """Hint image [b, 3, H, W] in [0, 1] -> residuals [b, c, h, w], not yet scaled by the timestep.

        They depend on the image alone: compute them once and hand them to every step with `encoded=True`.
        """
        h = self.stem(F.pixel_unshuffle(hint.to(self.stem.weight.dtype), PIXELS_PER_LATENT))
        features = [self.down[0](h)]  # [b, c, h, w] at the finest resolution
        for widen, blocks in zip(self.widen, self.down[1:], strict=True):
            features.append(blocks(widen(F.avg_pool2d(features[-1], 2))))  # half the size each
        if self.lite.top_down:
            for level in reversed(range(len(self.up))):
                coarse = F.interpolate(self.narrow[level](features[level + 1]), scale_factor=2.0)
                features[level] = self.up[level](features[level] + coarse)
        convs = zip(self.zero_convs, self.places, strict=True)
        return [conv(features[level]) for conv, (level, _) in convs]

    def forward(
        self, x: Tensor, hint: Tensor | list[Tensor], timesteps: Tensor, context: Tensor | None = None, *,
        encoded: bool = False,
    ) -> list[Tensor]:  # fmt: skip
        """Residuals for the skips, then for the middle; all zero in a branch that was never trained.

        hint: [b, 3, 8h, 8w] in [0, 1], or what `encode_hint` made of it when `encoded`; timesteps: [b]. The
        latent `x` and the text `context` are there for the branches' common signature.
        """
        residuals = hint if encoded else self.encode_hint(hint)
        if not self.lite.timed:
            return list(residuals)
        embedding = timestep_embedding(timesteps, self.model_channels).to(self.stem.weight.dtype)
        gains = self.time_gain(embedding)[:, :, None, None].split([c for _, c in self.places], dim=1)
        return [residual * (1 + gain) for residual, gain in zip(residuals, gains, strict=True)]

    def _blocks(self, width: int) -> nn.Sequential:
        return nn.Sequential(*(Block(width, self.lite.kernel) for _ in range(self.lite.depth)))


class Block(nn.Module):
    """x + MLP(norm(depthwise(x))), the same at every position; `kernel` 0 leaves the depthwise part out."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.mix: nn.Module = nn.Identity()
        if kernel:
            self.mix = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)  # over channels: no position looks at another
        self.mlp = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, c, h, w]."""
        h = self.norm(rearrange(self.mix(x), "b c h w -> b h w c"))
        return x + rearrange(self.mlp(h), "b h w c -> b c h w")


def _residual_places(unet: UNetConfig) -> list[tuple[int, int]]:
    """Resolution (0 the finest) and channels of each residual that a U-Net takes, the middle's last."""
    places, channels = [(0, unet.model_channels)], unet.model_channels
    for level, mult in enumerate(unet.channel_mult):
        channels = mult * unet.model_channels
        places += [(level, channels)] * unet.num_res_blocks
        if level + 1 < len(unet.channel_mult):
            places.append((level + 1, channels))
    return [*places, (len(unet.channel_mult) - 1, channels)]
