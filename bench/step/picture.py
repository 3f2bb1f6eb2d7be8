"""A whole picture in `bench.step`: prompts to embeddings, DDIM steps with guidance, latents to pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.inputs import LATENT_FACTOR
from bench.step.setting import Compute, Setting

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

PROMPT, NEGATIVE = "a red circle on a blue ground", "blurry, low quality"
SCALE = 9.0
SEED = 0
STAGES = ("text", "sampling", "decoding")  # of which seconds are told
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def our_picture(model: ControlLDM, setting: Setting) -> Compute:
    """Our pipeline on a ready-made map. Gives uint8 [H W 3], and seconds by stage."""
    from cldm.pipeline import Pipeline
    from cldm.request import ControlInput, Request

    pipeline = Pipeline(model)
    controls = (ControlInput(preprocess=False),)
    options = {"steps": setting.steps, "scale": SCALE, "resolution": setting.size}
    request = Request(PROMPT, NEGATIVE, controls, seed=SEED, **options)

    def run() -> tuple[Tensor, Mapping[str, float]]:
        result = pipeline(control_map(setting.size), request)
        seconds = result.seconds
        parts = dict(zip(STAGES, (seconds[stage] for stage in ("encode", "sample", "decode")), strict=True))
        return torch.from_numpy(result.images[0]), parts

    return run


def their_picture(setting: Setting) -> Compute:
    """diffusers' pipeline with the same weights, noise and schedule."""
    import diffusers

    from bench.step.diffusers import load_part
    from cldm.model import load_model

    text = load_model(setting.config, setting.files.weights).cond_stage_model  # transformers', as theirs is
    parts = {"unet": load_part(setting.files, "unet"), "controlnet": load_part(setting.files, "controlnet")}
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        **parts, vae=load_part(setting.files, "vae"), scheduler=scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    hint = torch.from_numpy(control_map(setting.size)).permute(2, 0, 1)[None] / 255
    side = setting.size // LATENT_FACTOR

    def run() -> tuple[Tensor, Mapping[str, float]]:
        clock = [time.perf_counter()]
        embeddings = text.encode([PROMPT, NEGATIVE])
        clock.append(time.perf_counter())
        latent = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED))
        latent = pipeline(
            prompt_embeds=embeddings[:1], negative_prompt_embeds=embeddings[1:], image=hint, latents=latent,
            num_inference_steps=setting.steps, guidance_scale=SCALE, output_type="latent",
        ).images  # fmt: skip
        clock.append(time.perf_counter())
        pixels = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        picture = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        clock.append(time.perf_counter())
        parts = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        return picture, parts

    return run


def control_map(size: int) -> np.ndarray:
    """A ready-made map: a white circle's outline on black, uint8 [H W 3]."""
    y, x = np.mgrid[:size, :size] - size / 2
    ring = abs(np.hypot(x, y) - size / 3) < 2
    return np.repeat(ring[..., None], 3, axis=2).astype(np.uint8) * 255
