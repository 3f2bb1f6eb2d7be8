"""How much noise each training timestep holds, and which timesteps a sampler visits.

The betas are those of latent diffusion (Rombach et al. 2022): evenly spaced in their square root. The twelve
buffers are the ones that published checkpoints store, in that order. They are always built in float64 on the
CPU, also inside `with torch.device("meta")`, because a model on the meta device must still know its schedule.
DDIM counts drift as published: 1000 training steps are cut into strides of `1000 // steps`, so 30 asked are
31 run.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

LOG_FLOOR = 1e-20  # the posterior variance at t=0 is 0 and its log must stay finite; published value
DDIM_OFFSET = 1  # published scripts visit 1, 51, 101, ... and never timestep 0
KARRAS_RHO = 7  # Karras et al. 2022, section D.1: bends the levels towards low noise


def schedule_buffers(timesteps: int, linear_start: float, linear_end: float) -> dict[str, Tensor]:
    """The twelve stored buffers by their published names and order, each [timesteps] in float32 on the CPU.

    The posterior is q(x_{t-1} | x_t, x_0) of Ho et al. 2020, eq. 6 and 7.
    """
    span = linear_start**0.5, linear_end**0.5
    betas = torch.linspace(*span, timesteps, dtype=torch.float64, device="cpu") ** 2
    alphas = 1 - betas
    abar = alphas.cumprod(0)  # [timesteps], of signal that is left
    abar_prev = torch.cat([torch.ones(1, dtype=abar.dtype, device="cpu"), abar[:-1]])
    variance = betas * (1 - abar_prev) / (1 - abar)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": abar_prev,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=LOG_FLOOR).log(),
        "posterior_mean_coef1": betas * abar_prev.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - abar_prev) * alphas.sqrt() / (1 - abar),
    }
    return {name: buffer.float() for name, buffer in buffers.items()}


def check_steps(steps: int, limit: int) -> None:
    """Raise ValueError unless 1 <= steps <= limit."""
    if not 1 <= steps <= limit:
        raise ValueError(f"steps={steps}: ask for at least 1 and at most {limit} sampling steps")


def ddim_timesteps(steps: int, total: int = 1000) -> list[int]:
    """Ascending timesteps 1, 1+c, 1+2c, ... with the published stride c = total // steps.

    Where `steps` does not divide `total` the count drifts upwards (15 -> 16, 30 -> 31); this is kept, since
    seeds of published images depend on it, and logged. Where the last stride would land on `total` itself,
    a timestep that no model was trained on (3, 9, 27, 36, 37, 101-111, 251-333 of 1000), it is left out:
    3 asked are 3 run.
    Raises ValueError below 1 and above total // 2, where no stride is left.
    """
    check_steps(steps, total // 2)
    chosen = [t + DDIM_OFFSET for t in range(0, total, total // steps) if t + DDIM_OFFSET < total]
    if len(chosen) != steps:
        log.warning("DDIM runs %d steps where %d were asked (published rounding)", len(chosen), steps)
    return chosen


def even_timesteps(steps: int, alphas_cumprod: Tensor) -> list[float]:
    """Ascending timesteps at even distance from 0 to the last one, with fractions; one step is the last."""
    last = len(alphas_cumprod) - 1
    check_steps(steps, len(alphas_cumprod) // 2)
    return [last * k / (steps - 1) for k in range(steps)] if steps > 1 else [float(last)]


def whole_timesteps(steps: int, alphas_cumprod: Tensor) -> list[float]:
    """Ascending whole timesteps at even distance, without 0: the clean image is the end of the walk."""
    last = len(alphas_cumprod) - 1
    check_steps(steps, len(alphas_cumprod) // 2)
    return [float(round(last * k / steps)) for k in range(1, steps + 1)]


def karras_timesteps(steps: int, alphas_cumprod: Tensor) -> list[float]:
    """Ascending timesteps, with fractions, whose sigmas are those of Karras et al. 2022, eq. 5."""
    check_steps(steps, len(alphas_cumprod) // 2)
    abar = alphas_cumprod.cpu().double().numpy()  # ratios of late levels need the digits
    log_sigmas = np.log((1 - abar) / abar) / 2
    low, high = np.exp(log_sigmas[[0, -1]] / KARRAS_RHO)
    sigmas = (high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_RHO
    return np.interp(np.log(sigmas[::-1]), log_sigmas, np.arange(len(abar))).tolist()


def vp_scales(t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """How much signal and how much noise x_t holds: sqrt(abar_t) and sqrt(1 - abar_t), each shaped like `t`.

    t: whole or with fractions, in [0, len(alphas_cumprod) - 1]. Between two timesteps log sigma is a straight
    line, where sigma = sqrt(1 - abar) / sqrt(abar).
    """
    if not t.is_floating_point():
        abar = alphas_cumprod[t]
        return abar.sqrt(), (1 - abar).sqrt()
    low = t.floor().long().clamp(0, len(alphas_cumprod) - 2)  # the last one has no neighbour above
    log_sigmas = torch.log((1 - alphas_cumprod) / alphas_cumprod) / 2
    sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], (t - low).to(log_sigmas.dtype)).exp()
    signal = (1 + sigma**2).rsqrt()  # signal^2 + noise^2 = 1
    return signal, sigma * signal


def sigma_levels(timesteps: Sequence[float], alphas_cumprod: Tensor) -> list[float]:
    """Noise over signal at each timestep, the sigma of Karras et al. 2022, in float64."""
    t = torch.tensor(timesteps, dtype=torch.float64, device="cpu")
    signal, noise = vp_scales(t, alphas_cumprod.cpu().double())
    return (noise / signal).tolist()


def ddim_sigma(abar: float, abar_prev: float, eta: float) -> float:
    """Standard deviation of the noise that a DDIM step adds (Song et al. 2021, eq. 16).

    eta: 0 adds none, 1 adds as much as the ancestral sampler; more would leave a negative variance for the
    rest of the step and raises ValueError, as does less than 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: DDIM takes 0 (no noise) to 1 (as much as ancestral sampling)")
    variance = (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)
    return eta * variance**0.5
