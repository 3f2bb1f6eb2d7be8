"""The denoising U-Net, and the half of it that ControlNet copies.

Ronneberger et al. 2015 with the attention of Rombach et al. 2022. `Encoder` is the time embedding, the input
blocks and the middle block; `UNetModel` adds the output blocks, ControlNet its zero convolutions. Modules are
registered in the published order: optimizer states of published runs are indexed by it. Inputs may have any
floating dtype: the networks cast them to their weights', and the U-Net casts its answer back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.feature_cache import FeatureCache, Skip
from ldm.modules.layers import (
    Downsample,
    ResBlock,
    TimestepBlock,
    Upsample,
    cat_skip,
    expand_batch,
    shared_batch,
    timestep_embedding,
    zero_module,
)
from ldm.util import config_from

TIME_EMBED_MULT = 4  # the time embedding is four times as wide as the first feature map
# Published yaml files carry these; none changes the network.
INERT_PARAMS = frozenset(
    {"image_size", "use_spatial_transformer", "legacy", "use_fp16", "dims", "conv_resample", "num_classes"}
)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net, under the names of the published yaml files.

    attention_resolutions are downsampling factors. num_head_channels = -1 means num_heads everywhere.
    num_groups is GroupNorm's; small models need fewer than 32 so that a group holds more than one channel.
    """

    in_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    out_channels: int = 4
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_heads: int = -1  # -1: given by num_head_channels
    num_head_channels: int = -1
    context_dim: int | None = None  # width of the text; None reads none
    transformer_depth: int = 1  # blocks at every position of attention
    use_linear_in_transformer: bool = False  # SD 2.x
    upcast_attention: bool = False  # SD 2.1, whose logits leave fp16
    use_checkpoint: bool = False
    dropout: float = 0.0
    num_groups: int = 32

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> UNetConfig:
        """The config behind published parameters.

        Raises ValueError for an unknown name, and where neither the number of heads nor their width is given.
        """
        config = config_from(cls, params, "the U-Net", INERT_PARAMS)
        if config.num_heads == -1 and config.num_head_channels == -1:
            raise ValueError("the U-Net needs num_heads or num_head_channels")
        return config

    def heads(self, channels: int) -> tuple[int, int]:
        """Number of heads and their width for a feature map of `channels`."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands the time embedding and the text to those children that take them."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, c, h, w], or as many first rows as all are made of; emb: [b, e]; context: [b, n, d]."""
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb[: len(x)])  # shared rows come with those of all
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """Time embedding, input blocks and middle block.

    skip_channels: channels of what each input block puts out, in order.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.model_channels = config.model_channels
        self.emb_channels = config.model_channels * TIME_EMBED_MULT
        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, self.emb_channels),
            nn.SiLU(),
            nn.Linear(self.emb_channels, self.emb_channels),
        )
        self.skip_channels: list[int] = []  # filled as the input blocks are made
        self.input_blocks = nn.ModuleList(self._input_blocks())
        self.add_before_middle()
        channels = self.skip_channels[-1]
        self.middle_block = TimestepEmbedSequential(
            self._res(channels, channels), self._transformer(channels), self._res(channels, channels)
        )

    def add_before_middle(self) -> None:
        """Register what a subclass keeps between input and middle blocks (ControlNet's published order)."""

    def _res(self, channels: int, out_channels: int) -> ResBlock:
        cfg = self.config
        options = {"dropout": cfg.dropout, "groups": cfg.num_groups, "use_checkpoint": cfg.use_checkpoint}
        return ResBlock(channels, self.emb_channels, out_channels, **options)

    def _transformer(self, channels: int) -> SpatialTransformer:
        cfg = self.config
        heads, dim_head = cfg.heads(channels)
        return SpatialTransformer(
            channels, cfg.context_dim, heads=heads, dim_head=dim_head, depth=cfg.transformer_depth,
            dropout=cfg.dropout, groups=cfg.num_groups, use_linear=cfg.use_linear_in_transformer,
            upcast=cfg.upcast_attention, use_checkpoint=cfg.use_checkpoint,
        )  # fmt: skip

    def _res_and_attention(self, channels: int, out_channels: int, factor: int) -> list[nn.Module]:
        layers: list[nn.Module] = [self._res(channels, out_channels)]
        if factor in self.config.attention_resolutions:
            layers.append(self._transformer(out_channels))
        return layers

    def _input_blocks(self) -> Iterable[nn.Module]:
        cfg, channels = self.config, self.model_channels
        self.skip_channels.append(channels)
        yield TimestepEmbedSequential(nn.Conv2d(cfg.in_channels, channels, 3, padding=1))
        for level, mult in enumerate(cfg.channel_mult):
            for _ in range(cfg.num_res_blocks):
                out_channels = mult * self.model_channels
                yield TimestepEmbedSequential(*self._res_and_attention(channels, out_channels, 2**level))
                channels = out_channels
                self.skip_channels.append(channels)
            if level + 1 < len(cfg.channel_mult):
                yield TimestepEmbedSequential(Downsample(channels))
                self.skip_channels.append(channels)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights, which every input is cast to."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    def embed(self, timesteps: Tensor) -> Tensor:
        """Time embedding [b, e] of `timesteps` [b], whole or with fractions."""
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))

    def cast(self, *inputs: Tensor | None) -> Iterator[Tensor | None]:
        """`inputs` in the dtype of the weights."""
        return (None if given is None else given.to(self.dtype) for given in inputs)

    def encode(self, x: Tensor, emb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What the middle block puts out, and the skips of all input blocks, for each row of `emb` [b, e].

        x: [b, c, h, w], or the first `shared_batch` rows of it.
        """
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        return self.middle_block(x, emb, context), [expand_batch(skip, emb) for skip in skips]


class UNetModel(Encoder):
    """Noisy latent, timestep and text -> what the schedule calls for (noise or velocity)."""

    def __init__(self, **params: Any) -> None:
        super().__init__(UNetConfig.from_params(params))
        self.output_blocks = nn.ModuleList(self._output_blocks())
        cfg = self.config
        self.out = nn.Sequential(
            nn.GroupNorm(cfg.num_groups, self.model_channels),
            nn.SiLU(),
            zero_module(nn.Conv2d(self.model_channels, cfg.out_channels, 3, padding=1)),
        )

    def _output_blocks(self) -> Iterable[nn.Module]:
        cfg, skips = self.config, list(self.skip_channels)
        channels = skips[-1]  # what the middle block puts out
        for level, mult in reversed(list(enumerate(cfg.channel_mult))):
            for index in range(cfg.num_res_blocks + 1):
                out_channels = mult * self.model_channels
                layers = self._res_and_attention(channels + skips.pop(), out_channels, 2**level)
                channels = out_channels
                if level and index == cfg.num_res_blocks:  # the last block of a level brings the next size
                    layers.append(Upsample(channels))
                yield TimestepEmbedSequential(*layers)

    def decode(self, h: Tensor, skips: list[Skip], emb: Tensor, context: Tensor | None,
               cache: FeatureCache | None = None) -> Tensor:  # fmt: skip
        """As many of the last output blocks as there are `skips`, over `h`, which enters the first of them.

        For all skips that is the middle block's. They are used up from the end; `cache` stores its part.
        """
        for block in self.output_blocks[len(self.output_blocks) - len(skips) :]:
            if cache is not None:
                cache.store(h, skips)
            h = block(cat_skip(h, *skips.pop()), emb, context)
        return self.out(h)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, c, h, w] latents; timesteps: [b]; context: [b, n, d] text -> [b, out_channels, h, w]."""
        h, text = self.cast(x[: shared_batch(context, x, timesteps)], context)
        emb = self.embed(timesteps)
        h, skips = self.encode(h, emb, text)
        return self.decode(h, [(skip, None) for skip in skips], emb, text).to(x.dtype)
