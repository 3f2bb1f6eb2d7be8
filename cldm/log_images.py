"""Images that show how far a training run is: reconstruction, control map, caption and samples.

Their names are the published ones, so that folders of old and new runs can be compared.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion

FONT_SHARE = 1 / 32  # of an image's width, 16 pixels at 512 as published
SMALLEST_FONT = 10  # pixels; less cannot be read
LETTER_WIDTH = 0.55  # of the font's size, on average
WHITE, BLACK = 255, 0


@dataclass(frozen=True)
class SampleSettings:
    """How to sample; scale: of the guidance, 1 or less for no guided samples; unguided: draw those too."""

    steps: int = 50  # published, as eta and scale
    eta: float = 0.0
    scale: float = 9.0
    unguided: bool = False


@torch.no_grad()
def log_images(
    model: LatentDiffusion, batch: Mapping[str, Any], count: int, settings: SampleSettings
) -> dict[str, Tensor]:
    """Images [n, 3, H, W] in about [-1, 1] of the first `count` of a training batch, by name.

    model: a ControlLDM.
    """
    latent, cond = model.get_input(batch, model.first_stage_key, bs=count)
    hint = cond["c_concat"][0]  # [n, 3, H, W] in [0, 1]
    images = {
        "reconstruction": model.decode_first_stage(latent),
        "control": hint * 2 - 1,
        "conditioning": captions(batch[model.cond_stage_key][:count], hint.shape[-2:]).to(hint.device),
    }
    if settings.unguided:
        images["samples"] = sample_images(model, latent.shape, cond, None, settings)
    if settings.scale > 1:
        uncond = cond | {"c_crossattn": [model.get_unconditional_conditioning(len(latent))]}
        name = f"samples_cfg_scale_{settings.scale:.2f}"
        images[name] = sample_images(model, latent.shape, cond, uncond, settings)
    return images


def sample_images(
    model: LatentDiffusion, shape: Sequence[int], cond: Any, uncond: Any, settings: SampleSettings
) -> Tensor:
    """Images [n, 3, H, W] from latents of `shape`, guided away from `uncond` where that is not None."""
    guidance = {"unconditional_guidance_scale": settings.scale, "unconditional_conditioning": uncond}
    latents, _ = DDIMSampler(model).sample(
        settings.steps, shape[0], shape[1:], cond, eta=settings.eta, verbose=False,
        **(guidance if uncond is not None else {}),
    )  # fmt: skip
    return model.decode_first_stage(latents)


def captions(texts: Sequence[str], size: Sequence[int]) -> Tensor:
    """`texts` in black on white images of `size` (H, W): [n, 3, H, W] in [-1, 1]."""
    height, width = size
    font_size = max(SMALLEST_FONT, round(width * FONT_SHARE))
    letters = max(1, int(width / (font_size * LETTER_WIDTH)))
    font = ImageFont.load_default(size=font_size)
    drawn = []
    for text in texts:
        image = Image.new("RGB", (width, height), (WHITE,) * 3)
        lines = "\n".join(textwrap.wrap(text, letters))
        ImageDraw.Draw(image).text((0, 0), lines, fill=(BLACK,) * 3, font=font)
        drawn.append(np.asarray(image))
    return rearrange(torch.from_numpy(np.stack(drawn)), "n H W c -> n c H W").float() / (WHITE / 2) - 1
