"""The training loss of a control branch, and the noise that it is measured with.

Ho et al. 2020, eq. 14, for noise and for velocity (Salimans & Ho 2022). With `snr_gamma` timesteps are
weighted by min(SNR, gamma) on the scale of x0 (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
Weighting Strategy"). Noise is drawn for each sample by itself, from its seed: how samples are put into
batches, steps and processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cldm.cldm import ControlLDM
from trainer.settings import Loss


@dataclass(frozen=True)
class Noise:
    """What is random about a batch: timesteps [b], and noise [b, c, h, w] for latents and for encoding."""

    t: Tensor  # whole numbers below the number of timesteps
    eps: Tensor
    posterior: Tensor


def latent_moments(model: ControlLDM, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of a batch's unscaled latents [b, c, h, w] and its text [b, n, d].

    Computed from `jpg` and `txt`, or taken from `mean`, `std` and `text` where a cache put them.
    """
    if "mean" in batch:
        return batch["mean"].float(), batch["std"].float(), batch["text"]
    with torch.no_grad():
        pixels = rearrange(batch[model.first_stage_key], "b H W c -> b c H W").contiguous()
        posterior = model.encode_first_stage(pixels.to(model.device, torch.float32))
        text = model.get_learned_conditioning(list(batch[model.cond_stage_key]))
    return posterior.mean, posterior.std, text


def draw_noise(numbers: Sequence[int], shape: Sequence[int], loss: Loss, timesteps: int) -> Noise:
    """Noise for the samples of these `numbers`, latents [c, h, w] of `shape`; on the CPU."""
    rows = [_noise_of(number, tuple(shape), loss, timesteps) for number in numbers]
    t, eps, posterior = (torch.stack(column) for column in zip(*rows, strict=True))
    return Noise(t, eps, posterior)


def _noise_of(
    number: int, shape: tuple[int, ...], loss: Loss, timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    (state,) = np.random.SeedSequence([loss.seed, number]).generate_state(1, np.uint64)
    source = torch.Generator().manual_seed(int(state))
    posterior = torch.randn(shape, generator=source)  # drawn first, so that a cache changes no draw after it
    t = torch.randint(timesteps, (), generator=source)
    eps = torch.randn(shape, generator=source)
    if loss.noise_offset:
        eps = eps + loss.noise_offset * torch.randn(shape[0], 1, 1, generator=source)  # [c, h, w]
    return t, eps, posterior


def control_loss(
    model: ControlLDM, x0: Tensor, cond: Mapping[str, Any], noise: Noise, snr_gamma: float | None = None
) -> Tensor:
    """Mean squared error of the model's answer for scaled latents `x0` [b, c, h, w], a scalar."""
    t, eps = noise.t.to(x0.device), noise.eps.to(x0)
    answer = model.apply_model(model.q_sample(x0, t, eps), t, cond).float()
    target = eps if model.parameterization == "eps" else model.get_v(x0, eps, t)
    errors = F.mse_loss(answer, target.float(), reduction="none").flatten(1).mean(1)  # [b]
    if snr_gamma is None:
        return errors.mean()
    alphas = model.alphas_cumprod.to(t.device)[t]  # [b]
    return (snr_weights(alphas, snr_gamma, model.parameterization) * errors).mean()


def snr_weights(alphas_cumprod: Tensor, gamma: float, parameterization: str) -> Tensor:
    """Min-SNR weights for an error in noise (`eps`) or velocity (`v`), at the levels `alphas_cumprod`.

    The published weight min(SNR, gamma) is for an error in x0. That of eps is SNR times as large, that of v
    SNR + 1 times: v = (sqrt(abar) x - x0) / sqrt(1 - abar) at a given noisy x.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)  # [b], signal over noise in power
    return snr.clamp(max=gamma) / (snr if parameterization == "eps" else snr + 1)
