"""Samplers by name: how to get from noise to a latent in n steps.

A sampler is called `(denoise, x_T, timesteps, alphas_cumprod, *, eta, generator, on_step, blend) -> x0`; it
pairs an update rule of ldm.models.diffusion.solvers with the timesteps that the rule is made for. Guidance,
masks and v-prediction are functions around a denoiser, so that no sampler knows of them.
Timesteps ascend in lists and are walked from the end. Only ddim reads `eta`; only ddim and euler_ancestral
draw noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion import solvers
from ldm.models.diffusion.sampling_run import Blend, Denoise, Generators, SamplerRun, Step, noise_sampler
from ldm.models.diffusion.schedule import (
    ddim_timesteps,
    even_timesteps,
    karras_timesteps,
    sigma_levels,
    vp_scales,
    whole_timesteps,
)

ROUNDING = 1e-9  # 100 steps at 0.29 are 29, though 0.29 * 100 is 28.999999999999996


@dataclass(frozen=True)
class Sampler:
    """An update rule and the timesteps it walks; call it to sample.

    spacing: (steps, alphas_cumprod) -> ascending timesteps.
    fractions: the model is told timesteps with their fractions (float32) instead of whole ones (int64).
    ends_clean: the last step leads to no noise at all; else to that of timestep 0, as published for DDIM.
    """

    solve: Callable[[SamplerRun], Tensor]  # of `ldm.models.diffusion.solvers`
    spacing: Callable[[int, Tensor], list[float]]
    fractions: bool = False
    ends_clean: bool = True

    def __call__(  # noqa: PLR0913 - the one signature of all samplers
        self, denoise: Denoise, x_T: Tensor, timesteps: Sequence[float], alphas_cumprod: Tensor, *,
        eta: float = 0.0, generator: Generators = None, on_step: Callable[[Step], None] | None = None,
        blend: Blend | None = None,
    ) -> Tensor:  # fmt: skip
        """Sample from x_T [b c h w], noised to the last of the ascending `timesteps`, to a clean latent.

        blend(x, t) may replace x before each model call (see `inpaint_blend`); on_step is told of each step.
        """
        model_timesteps = torch.tensor(timesteps[::-1], device=x_T.device, dtype=torch.float32)
        end = 0.0 if self.ends_clean else sigma_levels([0], alphas_cumprod)[0]
        run = SamplerRun(
            denoise, x_T,
            timesteps=model_timesteps if self.fractions else model_timesteps.round().long(),
            sigmas=[*sigma_levels(timesteps, alphas_cumprod)[::-1], end],
            noise=noise_sampler(x_T, generator), eta=eta, on_step=on_step, blend=blend,
        )  # fmt: skip
        return self.solve(run)

    def timesteps(self, steps: int, alphas_cumprod: Tensor, start: float = 1.0) -> list[float]:
        """The ascending timesteps of `steps` steps, or of the last `start` part of them (img2img strength).

        start in (0, 1]: 1 begins at pure noise, less keeps more of an image; at least one step is left.
        """
        if not 0 < start <= 1:
            raise ValueError(f"start={start}: allowed is more than 0 (keep the picture) up to 1 (pure noise)")
        levels = self.spacing(steps, alphas_cumprod)  # cut, not respaced: strength 0.5 makes half the steps
        return levels[: max(1, int(len(levels) * start + ROUNDING))]


def sample(
    name: str, denoise: Denoise, x_T: Tensor, steps: int, alphas_cumprod: Tensor, start: float = 1.0,
    **options: Any,
) -> Tensor:  # fmt: skip
    """A clean latent [b c h w] by the named sampler; for start < 1, x_T must come from `start_latent`.

    options: of `Sampler.__call__`.
    """
    sampler = get_sampler(name)
    return sampler(denoise, x_T, sampler.timesteps(steps, alphas_cumprod, start), alphas_cumprod, **options)


def start_latent(x0: Tensor, noise: Tensor, timesteps: Sequence[float], alphas_cumprod: Tensor) -> Tensor:
    """The latent x0 [b c h w] noised to where a sampler with these ascending timesteps begins (img2img)."""
    (sigma,) = sigma_levels(timesteps[-1:], alphas_cumprod)
    return (x0 + sigma * noise) / (1 + sigma**2) ** 0.5


def get_sampler(name: str) -> Sampler:
    """The sampler of that name; ValueError lists the known ones."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def classifier_free_guidance(
    cond_denoise: Denoise, uncond_denoise: Denoise | None, scale: float,
    guides: Callable[[Tensor], bool] | None = None, both: Denoise | None = None,
) -> Denoise:  # fmt: skip
    """Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond).

    At scale 1, or without an unconditional denoiser, only the conditional one runs; so it does at timesteps
    t [b] where `guides(t)` says no (Kynkäänniemi et al. 2024, "Applying guidance in a limited interval").
    both: the two as one, called with x and t twice in place of each apart.
    """
    if uncond_denoise is None or scale == 1:
        return cond_denoise

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        if guides is not None and not guides(t):
            return cond_denoise(x, t)
        if both is None:
            cond, uncond = cond_denoise(x, t), uncond_denoise(x, t)
        else:
            cond, uncond = both(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return uncond + scale * (cond - uncond)  # [b, c, h, w]; beyond 1 it extrapolates

    return denoise


def inpaint_blend(known: Tensor, mask: Tensor, alphas_cumprod: Tensor, generator: Generators = None) -> Blend:
    """A `blend` that keeps the clean latent `known` [b c h w] where mask [b 1 h w] is 1 (inpainting).

    The known part is noised freshly to the level of each model call, as published. The final latent is not
    blended once more: paste the known part back to have it exactly.
    """
    draw = noise_sampler(known, generator)

    def blend(x: Tensor, t: Tensor) -> Tensor:
        return add_noise(known, draw(), t, alphas_cumprod) * mask + (1 - mask) * x

    return blend


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise [b c h w], for t [b] whole or with fractions."""
    signal, level = _scales(t, alphas_cumprod, x0)
    return signal * x0 + level * noise


def eps_from_v(v: Tensor, x: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise [b c h w] that a v-prediction names: sqrt(abar) v + sqrt(1 - abar) x (Salimans & Ho 2022)."""
    signal, level = _scales(t, alphas_cumprod, x)
    return signal * v + level * x


def _scales(t: Tensor, alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    signal, level = vp_scales(t, alphas_cumprod.to(t.device))
    return signal[:, None, None, None].to(like), level[:, None, None, None].to(like)


def _published_timesteps(steps: int, alphas_cumprod: Tensor) -> list[int]:
    return ddim_timesteps(steps, len(alphas_cumprod))


SAMPLERS = {
    "ddim": Sampler(solvers.ddim, _published_timesteps, ends_clean=False),
    "euler": Sampler(solvers.euler, even_timesteps, fractions=True),
    "euler_ancestral": Sampler(solvers.euler_ancestral, even_timesteps, fractions=True),
    "heun": Sampler(solvers.heun, even_timesteps, fractions=True),
    "dpmpp_2m": Sampler(solvers.dpmpp_2m, whole_timesteps),
    "dpmpp_2m_karras": Sampler(solvers.dpmpp_2m, karras_timesteps),
    "unipc": Sampler(solvers.unipc, whole_timesteps),
}
