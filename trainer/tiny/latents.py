"""Latents of the tiny model's training scenes: of unit scale, and computed once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cldm.cldm import ControlLDM
from common.atomic import atomic_write
from trainer.tiny.data import SIDE, Posed, TinyScenes, never
from trainer.tiny.settings import TinySettings
from trainer.tiny.worlds import World

ENCODE_BATCH = 50  # pictures at once: 128 pixels are small
WHITEN_SCENES = 500  # enough for means and deviations of a few numbers


@torch.no_grad()
def whiten(model: ControlLDM, settings: TinySettings) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latent.

    Decoding is unchanged; latents leave with zero mean and unit variance, so that scale_factor is 1.
    """
    vae = model.first_stage_model.eval().requires_grad_(False)
    latents = encode_scenes(model, settings.world, settings.seed, WHITEN_SCENES)
    mean, std = latents.mean(dim=(0, 2, 3)).to(model.device), latents.std(dim=(0, 2, 3)).to(model.device)
    channels = len(mean)
    post, quant = vae.post_quant_conv, vae.quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean  # first: the weight is scaled below
    post.weight *= std[None, :, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()  # the log-variance of a divided latent


@torch.no_grad()
def encode_scenes(model: ControlLDM, world: World, seed: int, count: int, posed: Posed = never) -> Tensor:
    """Latents [count, c, h, w] of the first `count` training scenes, on the CPU."""
    data, vae = TinyScenes(world, "whole", seed, posed), model.first_stage_model.eval()
    latents = []
    for start in tqdm(range(0, count, ENCODE_BATCH), desc="latents", mininterval=20):
        pixels = torch.stack([data[i]["target"] for i in range(start, min(count, start + ENCODE_BATCH))])
        latents.append(vae.encode(pixels.to(model.device)).mode().cpu())
    return torch.cat(latents)


def cached_latents(model: ControlLDM, settings: TinySettings, posed: Posed) -> np.ndarray:
    """Latents [n c h w] of the first `settings.cache` scenes, computed once and kept in `settings.out`."""
    name = f"{'' if posed is never else 'posed-'}latents-{settings.cache}-{SIDE}.npy"
    file = settings.out / name
    if not file.exists():
        latents = encode_scenes(model, settings.world, settings.seed, settings.cache, posed)
        with atomic_write(file) as partial, partial.open("wb") as stream:
            np.save(stream, latents.numpy().astype(np.float16))
    return np.load(file)
