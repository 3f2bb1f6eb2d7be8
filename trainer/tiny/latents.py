"""Latents of the tiny model's training scenes: of unit scale, and computed once."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cldm.cldm import ControlLDM
from trainer.tiny.data import SIDE, TinyScenes

ENCODE_BATCH = 50
WHITEN_SCENES = 500  # enough for means and deviations of a few numbers


@torch.no_grad()
def whiten(model: ControlLDM, args: argparse.Namespace) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latent.

    Decoding is unchanged; latents leave with zero mean and unit variance, so that scale_factor is 1.
    """
    vae = model.first_stage_model.eval().requires_grad_(False)
    latents = encode_scenes(model, args.seed, WHITEN_SCENES)
    mean, std = latents.mean(dim=(0, 2, 3)).to(model.device), latents.std(dim=(0, 2, 3)).to(model.device)
    channels = len(mean)
    post, quant = vae.post_quant_conv, vae.quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()  # the log-variance of a divided latent


@torch.no_grad()
def encode_scenes(model: ControlLDM, seed: int, count: int, posed: float = 0.0) -> Tensor:
    """Latents [count, c, h, w] of the first `count` training scenes, on the CPU."""
    data, vae = TinyScenes("whole", seed, posed), model.first_stage_model.eval()
    latents = []
    for start in tqdm(range(0, count, ENCODE_BATCH), desc="latents", mininterval=20):
        pixels = torch.stack([data[i]["target"] for i in range(start, min(count, start + ENCODE_BATCH))])
        latents.append(vae.encode(pixels.to(model.device)).mode().cpu())
    return torch.cat(latents)


def cache_latents(
    model: ControlLDM, args: argparse.Namespace, name: str = "latents", posed: float = 0.0
) -> None:
    """Give `TinyScenes` the latents of its first `args.cache` scenes, kept in `args.out` under `name`."""
    file = args.out / f"{name}-{args.cache}-{SIDE}.npy"
    if not file.exists():
        np.save(file, encode_scenes(model, args.seed, args.cache, posed).numpy().astype(np.float16))
    TinyScenes.latents = np.load(file)
