"""Pictures that show how far a training run is: reconstruction, control map, caption and samples.

The names of the pictures are the published ones, so that folders of old and new runs can be compared.
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

FONT_SHARE = 1 / 32  # of a picture's width, 16 pixels at 512 as published
SMALLEST_FONT = 10  # pixels; less cannot be read
LETTER_WIDTH = 0.55  # of the font's size, on average
WHITE, BLACK = 255, 0


@dataclass(frozen=True)
class SampleSettings:
    """How to sample; scale: of the guidance, 1 or less for no guided samples; unguided: draw those too."""

    steps: int = 50
    eta: float = 0.0
    scale: float = 9.0
    unguided: bool = False


@torch.no_grad()
def log_images(
    model: LatentDiffusion, batch: Mapping[str, Any], count: int, settings: SampleSettings
) -> dict[str, Tensor]:
    """Pictures [n, 3, H, W] in about [-1, 1] of the first `count` of a training batch, by name.

    model: a ControlLDM.
    """
    latent, cond = model.get_input(batch, model.first_stage_key, bs=count)
    hint = cond["c_concat"][0]
    pictures = {
        "reconstruction": model.decode_first_stage(latent),
        "control": hint * 2 - 1,
        "conditioning": captions(batch[model.cond_stage_key][:count], hint.shape[-2:]).to(hint.device),
    }

    def draw(**guidance: Any) -> Tensor:
        samples, _ = DDIMSampler(model).sample(
            settings.steps, len(latent), latent.shape[1:], cond, eta=settings.eta, verbose=False, **guidance
        )
        return model.decode_first_stage(samples)

    if settings.unguided:
        pictures["samples"] = draw()
    if settings.scale > 1:
        uncond = cond | {"c_crossattn": [model.get_unconditional_conditioning(len(latent))]}
        pictures[f"samples_cfg_scale_{settings.scale:.2f}"] = draw(
            unconditional_guidance_scale=settings.scale, unconditional_conditioning=uncond
        )
    return pictures


def captions(texts: Sequence[str], size: Sequence[int]) -> Tensor:
    """`texts` in black on white pictures of `size` (H, W): [n, 3, H, W] in [-1, 1]."""
    height, width = size
    font_size = max(SMALLEST_FONT, round(width * FONT_SHARE))
    letters = max(1, int(width / (font_size * LETTER_WIDTH)))
    font = ImageFont.load_default(size=font_size)
    drawn = []
    for text in texts:
        picture = Image.new("RGB", (width, height), (WHITE,) * 3)
        lines = "\n".join(textwrap.wrap(text, letters))
        ImageDraw.Draw(picture).text((0, 0), lines, fill=(BLACK,) * 3, font=font)
        drawn.append(np.asarray(picture))
    return rearrange(torch.from_numpy(np.stack(drawn)), "n H W c -> n c H W").float() / (WHITE / 2) - 1
