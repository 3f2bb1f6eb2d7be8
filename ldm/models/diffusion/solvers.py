"""The update rules: functions that lead from x_T to x0, each taking one `SamplerRun`.

ddim: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12. euler, euler_ancestral, heun:
Karras et al. 2022 (algorithm 1, without churn), as k-diffusion steps them. dpmpp_2m: Lu et al. 2022,
"DPM-Solver++", algorithm 2. unipc: Zhao et al. 2023, "UniPC", order 2 with B(h) = exp(h) - 1.
Latents stay in the variance-preserving scale between steps; `sigma` is always noise over signal, so the
signal is 1 / sqrt(1 + sigma^2). In y = x / signal the ODE is dy = eps dsigma: Euler and Heun step there.
"""

import math

from torch import Tensor

from ldm.models.diffusion.sampling_run import SamplerRun
from ldm.models.diffusion.schedule import ddim_sigma


def ddim(run: SamplerRun) -> Tensor:
    """Latent [b c h w] by DDIM: eta=0 is the ODE, eta=1 is ancestral. One draw per step, at eta 0 too."""
    x = run.x_T
    abars = [1 / (1 + sigma**2) for sigma in run.sigmas]
    for i in range(run.total):
        x, eps = run.predict(x, i)
        x, x0 = ddim_step(x, eps, abars[i : i + 2], run.eta, run.noise())
        run.report(i, x, x0)
    return x


def ddim_step(x: Tensor, eps: Tensor, abars: list[float], eta: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The next latent and the predicted x0; `abars` holds abar of this level and of the next."""
    abar, abar_prev = abars
    sigma = ddim_sigma(abar, abar_prev, eta)
    x0 = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    return abar_prev**0.5 * x0 + (1 - abar_prev - sigma**2) ** 0.5 * eps + sigma * noise, x0


def ode_step(x: Tensor, eps: Tensor, here: float, there: float) -> Tensor:
    """x [b c h w] moved from sigma `here` to sigma `there` along a constant eps, in either direction."""
    return _signal(there) * (x / _signal(here) + (there - here) * eps)


def euler(run: SamplerRun) -> Tensor:
    """Latent [b c h w] by straight steps along the ODE; draws nothing."""
    x = run.x_T
    for i in range(run.total):
        x, eps = run.predict(x, i)
        x0 = _clean(x, eps, run.sigmas[i])
        x = ode_step(x, eps, run.sigmas[i], run.sigmas[i + 1])
        run.report(i, x, x0)
    return x


def euler_ancestral(run: SamplerRun) -> Tensor:
    """Latent [b c h w]: each Euler step goes below its level and noise lifts it back. One draw per step."""
    x = run.x_T
    for i in range(run.total):
        x, eps = run.predict(x, i)
        here, there = run.sigmas[i : i + 2]
        x0 = _clean(x, eps, here)
        up = there * (1 - there**2 / here**2) ** 0.5
        down = there**2 / here  # up^2 + down^2 = there^2
        unscaled = x / _signal(here) + (down - here) * eps + up * run.noise()
        x = _signal(there) * unscaled
        run.report(i, x, x0)
    return x


def heun(run: SamplerRun) -> Tensor:
    """Latent [b c h w] by the trapezium rule: two model calls per step, one in the last; draws nothing."""
    x = run.x_T
    for i in range(run.total):
        x, eps = run.predict(x, i)
        here, there = run.sigmas[i : i + 2]
        x0 = _clean(x, eps, here)
        if i + 1 < run.total:
            _, eps_there = run.predict(ode_step(x, eps, here, there), i + 1)
            eps = (eps + eps_there) / 2  # the slope at both ends
        x = ode_step(x, eps, here, there)
        run.report(i, x, x0)
    return x


def dpmpp_2m(run: SamplerRun) -> Tensor:
    """Latent [b c h w] by second-order multistep DPM-Solver++; first and last step are of order 1."""
    return _multistep(run, correct=False)


def unipc(run: SamplerRun) -> Tensor:
    """Latent [b c h w]: the DPM-Solver++ step, corrected once the model has seen where it led (UniC)."""
    return _multistep(run, correct=True)


def _multistep(run: SamplerRun, *, correct: bool) -> Tensor:
    x, last_x, x0s = run.x_T, None, []  # the two newest x0, the older first
    for i in range(run.total):
        x, eps = run.predict(x, i)
        x0 = _clean(x, eps, run.sigmas[i])
        if correct and i > 0:
            x = _corrector(last_x, x0, x0s, i, run.sigmas)
        last_x, x0s = x, [*x0s[-1:], x0]
        x = _predictor(x, x0, x0s[-2] if i > 0 else None, i, run.sigmas)
        run.report(i, x, x0)
    return x


def _signal(sigma: float) -> float:
    return 1 / math.sqrt(1 + sigma**2)


def _clean(x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    return x / _signal(sigma) - sigma * eps


def _exponential_euler(x: Tensor, x0: Tensor, here: float, there: float) -> Tensor:
    # (sigma_t / sigma_s) x - alpha_t (e^-h - 1) x0, where e^-h is the ratio of the two sigmas
    ratio = there / here
    return _signal(there) * (ratio * x / _signal(here) + (1 - ratio) * x0)


def _predictor(x: Tensor, x0: Tensor, x0_before: Tensor | None, i: int, sigmas: list[float]) -> Tensor:
    here, there = sigmas[i : i + 2]
    step = _exponential_euler(x, x0, here, there)
    if x0_before is None or i + 2 == len(sigmas):
        return step
    r = math.log(sigmas[i - 1] / here) / math.log(here / there)  # last step over this one, in log SNR
    return step + _signal(there) * (1 - there / here) / 2 * (x0 - x0_before) / r


def _corrector(last_x: Tensor, x0: Tensor, x0s: list[Tensor], i: int, sigmas: list[float]) -> Tensor:
    # x0 is the model's answer at level i, x0s those at the levels before; as many as the prediction had
    before, here = sigmas[i - 1 : i + 1]
    scale = _signal(here) * (1 - here / before)
    step = _exponential_euler(last_x, x0s[-1], before, here)
    change = x0 - x0s[-1]
    if len(x0s) == 1:
        return step + scale * change / 2
    h = math.log(before / here)
    r = -math.log(sigmas[i - 2] / before) / h  # negative: that level lies before this step
    # Weights that make the rule exact for x0 linear and quadratic in log SNR: eq. 11 with B(h) = e^-h - 1.
    b = math.expm1(-h)  # exact where h is small
    linear = (-b / h - 1) / b
    quadratic = ((b / h + 1) / h - 1 / 2) * 2 / b
    old = (linear - quadratic) / (1 - r)
    return step + scale * (old * (x0s[-2] - x0s[-1]) / r + (linear - old) * change)
