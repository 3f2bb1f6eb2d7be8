"""Fixed prompts and control pictures that a run is looked at by, so that its grids can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cldm.cldm import ControlLDM
from ldm.image import image_to_hint, read_image
from ldm.models.diffusion.ddim import DDIMSampler
from trainer.data.dataset import to_square

LATENT_STEP = 8  # pixels of the picture for one of the latent
GAP = 2


@dataclass(frozen=True)
class Validation:
    """What to draw. hints: uint8 [H W 3], one for each prompt; count: samples of each; scale: of guidance."""

    prompts: tuple[str, ...]
    hints: tuple[np.ndarray, ...]
    count: int = 4
    steps: int = 20
    scale: float = 9.0
    seed: int = 0


def read_validation(
    prompts: Sequence[str], images: Sequence[Path], resolution: int
) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Prompts and control pictures of equal number, as diffusers pairs them: one of either serves all.

    Raises ValueError for numbers that do not fit, and as `read_image`.
    """
    if len(prompts) != len(images) and 1 not in (len(prompts), len(images)):
        raise ValueError(
            f"{len(prompts)} validation prompts for {len(images)} validation images: give as many of both, "
            "or one of either"
        )
    pictures = [to_square(read_image(path)[:, :, :3], resolution) for path in images]
    length = max(len(prompts), len(pictures))
    spread = [list(part) * length if len(part) == 1 else list(part) for part in (prompts, pictures)]
    return tuple(spread[0]), tuple(spread[1])


@torch.no_grad()
def validation_grid(model: ControlLDM, validation: Validation) -> Tensor:
    """A row for each prompt, its control picture and then the samples: [3, H, W] in [-1, 1]."""
    rows = []
    for number, (prompt, hint) in enumerate(zip(validation.prompts, validation.hints, strict=True)):
        control = image_to_hint(hint, validation.count).to(model.device)
        torch.manual_seed(validation.seed + number)
        pictures = torch.cat([control[:1] * 2 - 1, sample(model, prompt, control, validation)])
        pictures = torch.nn.functional.pad(pictures.float().cpu(), (0, GAP, 0, GAP), value=1.0)
        rows.append(rearrange(pictures, "k c H W -> c H (k W)"))
    return torch.cat(rows, dim=1).clamp(-1, 1)


def sample(model: ControlLDM, prompt: str, control: Tensor, validation: Validation) -> Tensor:
    """Pictures [n, 3, H, W] in about [-1, 1] for `control` [n, 3, H, W] in [0, 1]."""
    n, _, height, width = control.shape
    cond, uncond = (
        {"c_concat": [control], "c_crossattn": [model.get_learned_conditioning([text] * n)]}
        for text in (prompt, "")
    )
    shape = (model.model.diffusion_model.config.in_channels, height // LATENT_STEP, width // LATENT_STEP)
    latents, _ = DDIMSampler(model).sample(
        validation.steps, n, shape, cond, eta=0.0, verbose=False,
        unconditional_guidance_scale=validation.scale, unconditional_conditioning=uncond,
    )  # fmt: skip
    return model.decode_first_stage(latents)
