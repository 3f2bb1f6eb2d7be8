"""ControlNet: a trainable copy of the U-Net's encoder that steers a frozen U-Net through zero convolutions.

Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". A control branch
is any module with `forward(x, hint, timesteps, context) -> residuals`; residuals are used from the end, the
last for the middle block, the others for the skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cldm.log_images import SampleSettings, log_images
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.feature_cache import FeatureCache
from ldm.modules.layers import expand_batch, shared_batch, zero_module
from ldm.modules.unet import Encoder, TimestepEmbedSequential, UNetConfig, UNetModel
from ldm.util import instantiate_from_config

# Widths of the hint block's convolutions; each change of width halves the image, three times in all: 1/8.
HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)


class ControlNet(Encoder):
    """Hint image, noisy latent, timestep and text -> a residual for each skip and one for the middle."""

    def __init__(self, *, hint_channels: int = 3, **params: Any) -> None:
        self.hint_channels = hint_channels
        super().__init__(UNetConfig.from_params(params))
        channels = self.skip_channels[-1]
        self.middle_block_out = _zero_conv(channels)

    def add_before_middle(self) -> None:
        """Zero convolutions and hint block."""
        self.zero_convs = nn.ModuleList(_zero_conv(channels) for channels in self.skip_channels)
        self.input_hint_block = _hint_block(self.hint_channels, self.model_channels)

    def encode_hint(self, hint: Tensor) -> Tensor:
        """Hint image [b, 3, H, W] in [0, 1] -> features [b, model_channels, H/8, W/8].

        They depend on the image alone: compute them once and hand them to every step with `encoded=True`.
        """
        features = hint.to(self.dtype)  # [b, 3, H, W]
        for layer in self.input_hint_block:
            features = layer(features)
        return features

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor | None = None, *,
                encoded: bool = False) -> list[Tensor]:  # fmt: skip
        """Residuals for the skips, then for the middle; all zero in a branch that was never trained.

        x: [b, c, h, w]; hint: [b, 3, 8h, 8w] in [0, 1], or its features when `encoded`; timesteps: [b];
        context: [b, n, d].
        """
        rows = shared_batch(context, x, timesteps, hint)
        features = hint[:rows] if encoded else self.encode_hint(hint[:rows])
        h, features, text = self.cast(x[:rows], features, context)
        emb, residuals = self.embed(timesteps), []
        for index, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, text)
            if index == 0:
                h = h + features  # once, behind the first convolution: both are [b, model_channels, h, w]
            residuals.append(expand_batch(zero_conv(h, emb), x))
        h = self.middle_block(h, emb, text)
        return [*residuals, self.middle_block_out(h, emb)]


class ControlledUnetModel(UNetModel):
    """The U-Net with residuals added to its middle and its skips; its encoder learns only when told."""

    encoder_learns = False  # training a branch needs no gradients there; pruning and what mends it do

    def forward(  # noqa: PLR0913 - the published signature and what sampling adds to it
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None,
        control: Sequence[Tensor] | None = None, only_mid_control: bool = False,
        cache: FeatureCache | None = None,
    ) -> Tensor:  # fmt: skip
        """As `UNetModel.forward`; control: residuals in a control branch's order, None for none.

        only_mid_control: use the last residual alone. cache: features of an earlier call to use again, or
        where to leave this one's.
        """
        if cache is not None and cache.deep is not None:
            return self._resumed(x, timesteps, context, None if only_mid_control else control, cache)
        residuals = [] if control is None else list(self.cast(*control))
        h, text = self.cast(x[: shared_batch(context, x, timesteps)], context)
        with torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()):
            emb = self.embed(timesteps)
            h, skips = self.encode(h, emb, text)
        if residuals:
            h = h + residuals[-1]  # the middle's
        onto_skips = residuals[:-1] if residuals and not only_mid_control else [None] * len(skips)
        return self.decode(h, list(zip(skips, onto_skips, strict=True)), emb, text, cache).to(x.dtype)

    def _resumed(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None, control: Sequence[Tensor] | None,
        cache: FeatureCache,
    ) -> Tensor:  # fmt: skip
        h, text = self.cast(x, context)
        emb, skips = self.embed(timesteps), []
        for index, block in enumerate(self.input_blocks[: cache.encoder]):
            h = block(h, emb, text)
            skips.append((h if control is None else h + control[index].to(h.dtype), None))
        return self.decode(cache.deep, [*skips, *cache.skips], emb, text).to(x.dtype)


class ControlLDM(LatentDiffusion):
    """Latent diffusion with a control branch.

    cond = {"c_concat": [hint] | None, "c_crossattn": [text]}; `control_scales` is only the default of
    `apply_model`'s argument: nothing here is written to by a request.
    """

    def __init__(
        self, control_stage_config: Mapping[str, Any], control_key: str = "hint",
        only_mid_control: bool = False, *, global_average_pooling: bool = False, sd_locked: bool = True,
        **params: Any,
    ) -> None:  # fmt: skip
        branch = instantiate_from_config(control_stage_config)
        super().__init__(leading={"control_model": branch}, **params)
        self.control_key = control_key
        self.only_mid_control = only_mid_control
        self.global_average_pooling = global_average_pooling
        self.model.requires_grad_(False)  # `sd_locked` below says what of it may learn
        self.sd_locked = sd_locked
        self.control_scales = [1.0] * (len(self.model.diffusion_model.input_blocks) + 1)

    @property
    def sd_locked(self) -> bool:
        """Whether training leaves the U-Net's output half as it is; its encoder never learns."""
        return self._sd_locked

    @sd_locked.setter
    def sd_locked(self, locked: bool) -> None:
        self._sd_locked = locked
        for parameter in self._output_half():
            parameter.requires_grad_(not locked)

    def get_input(
        self, batch: Mapping[str, Any], key: str, bs: int | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Latents of `batch[key]`, and `cond` from its texts and hint images [b, H, W, 3] in [0, 1].

        bs: use only so many of the batch.
        """
        chosen = {name: batch[name][:bs] for name in (key, self.cond_stage_key, self.control_key)}
        latent, text = super().get_input(chosen, key)
        hint = rearrange(chosen[self.control_key], "b H W c -> b c H W").to(self.device, torch.float32)
        return latent, {"c_crossattn": [text], "c_concat": [hint.contiguous()]}

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any],
                    control_scales: Sequence[float] | None = None) -> Tensor:  # fmt: skip
        """The controlled U-Net's answer for [b, c, h, w] latents at [b] timesteps.

        control_scales: one factor for each residual, `self.control_scales` when None. `cond` may hold ready
        residuals under "control" (see `cldm.sampling`): they are used as they are; and `FeatureCache`
        under "cache".
        """
        text = torch.cat(list(cond["c_crossattn"]), dim=1)
        residuals = cond.get("control")  # of `cldm.sampling`: scaled already, of several branches
        if residuals is None and cond["c_concat"] is not None:
            hint = torch.cat(list(cond["c_concat"]), dim=1)  # [b, 3, 8h, 8w]
            residuals = self.control_model(x=x_noisy, hint=hint, timesteps=t, context=text)
            scales = self.control_scales if control_scales is None else control_scales
            residuals = scale_residuals(residuals, scales, pool=self.global_average_pooling)
        return self.model.diffusion_model(
            x_noisy, t, context=text, control=residuals, only_mid_control=self.only_mid_control,
            cache=cond.get("cache"),
        )  # fmt: skip

    @torch.no_grad()
    def log_images(
        self, batch: Mapping[str, Any], N: int = 4, sample: bool = False, ddim_steps: int = 50,
        ddim_eta: float = 0.0, unconditional_guidance_scale: float = 9.0, **_: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Pictures [n, 3, H, W] in about [-1, 1] of the first N of a batch, by name (published).

        sample: draw without guidance too. Other published keywords (n_row, split, ...) change nothing here.
        """
        settings = SampleSettings(ddim_steps, ddim_eta, unconditional_guidance_scale, unguided=sample)
        return log_images(self, batch, N, settings)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer gets: the branch, and the U-Net's output half too unless `sd_locked`."""
        return [*self.control_model.parameters(), *([] if self.sd_locked else self._output_half())]

    def _output_half(self) -> list[nn.Parameter]:
        unet = self.model.diffusion_model
        return [*unet.output_blocks.parameters(), *unet.out.parameters()]

    def low_vram_shift(self, is_diffusing: bool) -> None:
        """Keep on the GPU only what comes next: U-Net and branch, or autoencoder and text encoder."""
        diffusing, rest = (self.model, self.control_model), (self.first_stage_model, self.cond_stage_model)
        stays, leaves = (diffusing, rest) if is_diffusing else (rest, diffusing)
        for module in leaves:  # leave first: both halves together may not fit
            module.to("cpu")
        for module in stays:
            module.to(self.device)


def scale_residuals(residuals: Sequence[Tensor], scales: Sequence[float], *, pool: bool) -> list[Tensor]:
    """Each residual times its scale; `pool` averages over positions, to [b, c, 1, 1] (shuffle).

    Raises ValueError unless there is one scale for each residual.
    """
    if len(scales) != len(residuals):
        raise ValueError(f"{len(scales)} control scales for {len(residuals)} residuals: give one for each")
    pairs = zip(residuals, scales, strict=True)
    scaled = [residual if scale == 1 else residual * scale for residual, scale in pairs]
    return [residual.mean(dim=(2, 3), keepdim=True) for residual in scaled] if pool else scaled


def _zero_conv(channels: int) -> TimestepEmbedSequential:
    return TimestepEmbedSequential(zero_module(nn.Conv2d(channels, channels, 1)))


def _hint_block(hint_channels: int, model_channels: int) -> TimestepEmbedSequential:
    layers: list[nn.Module] = []
    before = hint_channels
    for index, width in enumerate(HINT_WIDTHS):
        stride = 2 if index and width != before else 1
        conv = nn.Conv2d(before, width, 3, padding=1, stride=stride)
        # With torch's default an image's contrast fades 7,000-fold on its way through seven layers, and a
        # branch takes many times as many steps to notice it.
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.SiLU()]  # places as published: 0, 2, 4, ...
        before = width
    return TimestepEmbedSequential(*layers, zero_module(nn.Conv2d(before, model_channels, 3, padding=1)))
