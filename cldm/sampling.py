"""From embeddings, control units and noise to latents: the part of a request that runs the U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cldm.cldm import ControlLDM
from cldm.control_units import ControlledDenoiser, ControlUnit, step_at, within
from cldm.request import Request
from ldm.models.diffusion.samplers import classifier_free_guidance, get_sampler, inpaint_blend, start_latent
from ldm.models.diffusion.sampling_run import Generators, Step, noise_sampler


@dataclass(frozen=True)
class SamplingJob:
    """All that `sample_latents` needs; `request` must be complete.

    texts: embeddings of the prompts and of the negative prompts, [n, m, d] each. size: (h, w) of the latents.
    known: clean latents [1, c, h, w] to start from. keep: [1, 1, h, w], 1 where `known` stays. together: with
    and without the prompt in one call where both are steered alike, which takes more memory and less time.
    """

    request: Request
    texts: tuple[Tensor, Tensor]
    units: Sequence[ControlUnit]
    noise: Generators
    size: tuple[int, int]
    known: Tensor | None = None
    keep: Tensor | None = None
    on_step: Callable[[Step], None] | None = None
    together: bool = True


def sample_latents(model: ControlLDM, job: SamplingJob) -> Tensor:
    """Clean scaled latents, float32 [n, c, h, w]."""
    request, n = job.request, len(job.texts[0])
    sampler, abar = get_sampler(request.sampler), model.alphas_cumprod
    timesteps = sampler.timesteps(request.steps, abar, request.denoise)
    channels = model.model.diffusion_model.config.in_channels
    x_T = noise_sampler(torch.empty(n, channels, *job.size, device=model.device), job.noise)()
    blend = None
    if job.known is not None:
        known = job.known.expand(n, -1, -1, -1)
        if request.denoise < 1:
            x_T = start_latent(known, x_T, timesteps, abar)
        if job.keep is not None:
            blend = inpaint_blend(known, job.keep.to(known), abar, job.noise)
    unconditional = [unit for unit in job.units if unit.unconditional]
    cond = ControlledDenoiser(model, job.texts[0], job.units, timesteps, request)
    uncond = ControlledDenoiser(model, job.texts[1], unconditional, timesteps, request)

    def guides(t: Tensor) -> bool:
        step = step_at(timesteps, t)
        return within(step, len(timesteps), request.guidance_start, request.guidance_end)

    both = None
    reuses = request.reuse_every > 1 or request.control_every > 1
    if job.together and len(unconditional) == len(job.units) and not reuses:
        both = ControlledDenoiser(model, torch.cat(job.texts), job.units, timesteps, request)
    denoise = classifier_free_guidance(cond, uncond, request.scale, guides, both)
    hooks = {"generator": job.noise, "on_step": job.on_step, "blend": blend}
    return sampler(denoise, x_T, timesteps, abar, eta=request.eta, **hooks)
