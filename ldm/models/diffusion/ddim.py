"""DDIMSampler, the face that the published ControlNet scripts call, over ldm.models.diffusion.solvers.

Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12. Call positions, attributes and the
order of draws from torch's global generator are the published ones: one randn for x_T, then for each step the
mask's noise if there is a mask, then one randn, at eta 0 too. The device is the model's.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.diffusion import solvers
from ldm.models.diffusion.samplers import classifier_free_guidance, eps_from_v
from ldm.models.diffusion.sampling_run import Blend, Denoise, SamplerRun, Step
from ldm.models.diffusion.schedule import check_steps, ddim_sigma, ddim_timesteps, sigma_levels

log = logging.getLogger(__name__)


class DDIMSampler:
    """Samples latents of a model that has `apply_model`, `q_sample`, `parameterization` and a schedule."""

    def __init__(self, model: nn.Module, schedule: str = "linear", **kwargs: Any) -> None:
        self.model = model
        self.schedule = schedule
        self.ddpm_num_timesteps = model.num_timesteps

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device = getattr(self.model, "device", None)
        return self.model.betas.device if device is None else torch.device(device)

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> None:  # fmt: skip
        """Set the timesteps and their coefficients as ddim_* attributes, ascending, [steps] each."""
        if ddim_discretize != "uniform":
            raise NotImplementedError(f"ddim_discretize={ddim_discretize!r}: only 'uniform' is supported")
        abar = self.model.alphas_cumprod.float().to(self.device)
        chosen = ddim_timesteps(ddim_num_steps, self.ddpm_num_timesteps)
        self.ddim_timesteps = np.asarray(chosen)
        self.ddim_eta = ddim_eta
        self.ddim_alphas = abar[chosen]  # [steps], ascending as all of them
        self.ddim_alphas_prev = abar[[0, *chosen[:-1]]]  # the first step ends at timestep 0, not at no noise
        pairs = zip(self.ddim_alphas.tolist(), self.ddim_alphas_prev.tolist(), strict=True)
        self.ddim_sigmas = torch.tensor([ddim_sigma(*pair, ddim_eta) for pair in pairs], device=self.device)
        self.ddim_sqrt_one_minus_alphas = (1 - self.ddim_alphas).sqrt()
        if verbose:
            log.info("DDIM: %d steps, eta %s", len(chosen), ddim_eta)

    @torch.no_grad()
    def sample(  # noqa: PLR0913 - published signature
        self, S: int, batch_size: int, shape: Sequence[int], conditioning: Any = None,
        callback: Callable[[int], None] | None = None, normals_sequence: None = None,
        img_callback: Callable[[Tensor, int], None] | None = None, quantize_x0: bool = False,
        eta: float = 0.0, mask: Tensor | None = None, x0: Tensor | None = None, temperature: float = 1.0,
        noise_dropout: float = 0.0, score_corrector: None = None, corrector_kwargs: None = None,
        verbose: bool = True, x_T: Tensor | None = None, log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Any = None,
        dynamic_threshold: None = None, ucg_schedule: Sequence[float] | None = None, **kwargs: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:  # fmt: skip
        """Latents [batch_size, *shape], and the latents and predicted x0 along the way, lists from x_T on.

        mask [b 1 h w] is 1 where x0 is kept; ucg_schedule is one guidance scale per step. Every
        log_every_t-th step is kept, counted from the end, and the first. Further keywords are ignored.
        """
        _refuse(quantize_x0=quantize_x0, score_corrector=score_corrector, dynamic_threshold=dynamic_threshold)
        _warn_of_other_batch(conditioning, batch_size)
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        if x_T is None:
            x_T = torch.randn((batch_size, *shape), device=self.device)
        scales = self._scales(unconditional_guidance_scale, ucg_schedule)
        kept = {"x_inter": [x_T], "pred_x0": [x_T]}
        denoise = self._denoiser(conditioning, unconditional_conditioning, scales)
        record = _recorder(kept, log_every_t, callback, img_callback)
        noise = _tempered(x_T, temperature, noise_dropout)
        run = self._run(denoise, x_T, noise=noise, on_step=record, blend=self._blend(mask, x0))
        return solvers.ddim(run), kept

    @torch.no_grad()
    def p_sample_ddim(  # noqa: PLR0913 - published signature
        self, x: Tensor, c: Any, t: Tensor, index: int, repeat_noise: bool = False,
        use_original_steps: bool = False, quantize_denoised: bool = False, temperature: float = 1.0,
        noise_dropout: float = 0.0, score_corrector: None = None, corrector_kwargs: None = None,
        unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Any = None,
        dynamic_threshold: None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One step from timestep t [b], the index-th of the schedule: next latent, predicted x0 [b c h w]."""
        _refuse(quantize_denoised=quantize_denoised, score_corrector=score_corrector)
        _refuse(dynamic_threshold=dynamic_threshold)
        _, sigmas = self._levels(use_original_steps)
        eps = self._denoiser(c, unconditional_conditioning, repeat(unconditional_guidance_scale))(x, t)
        abars = [1 / (1 + sigmas[k] ** 2) for k in (index + 1, index)]  # this level, then the next
        like = x[:1] if repeat_noise else x  # one draw for the whole batch
        return solvers.ddim_step(x, eps, abars, self.ddim_eta, _tempered(like, temperature, noise_dropout)())

    @torch.no_grad()
    def decode(  # noqa: PLR0913 - published signature
        self, x_latent: Tensor, cond: Any, t_start: int, unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None, use_original_steps: bool = False,
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Latent [b c h w] by the first `t_start` timesteps of the schedule, walked from the last of them."""
        denoise = self._denoiser(cond, unconditional_conditioning, repeat(unconditional_guidance_scale))
        hear = None if callback is None else lambda step: callback(step.index)
        noise = _tempered(x_latent, temperature=1.0, dropout=0.0)
        run = self._run(denoise, x_latent, t_start, use_original_steps, noise=noise, on_step=hear)
        return solvers.ddim(run)

    @torch.no_grad()
    def encode(  # noqa: PLR0913 - published signature
        self, x0: Tensor, c: Any, t_enc: int, use_original_steps: bool = False,
        return_intermediates: int | None = None, unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None, callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        """The latent [b c h w] that leads to x0, `t_enc` steps up the ODE (DDIM inversion), and what it kept.

        return_intermediates: about how many latents to keep, as {"intermediates", "intermediate_steps"}.
        """
        timesteps, sigmas = self._levels(use_original_steps)
        check_steps(t_enc, len(timesteps))
        denoise = self._denoiser(c, unconditional_conditioning, repeat(unconditional_guidance_scale))
        x, kept = x0, {}
        every = max(1, t_enc // (return_intermediates or t_enc))
        for i in range(t_enc):
            eps = denoise(x, torch.full((len(x),), timesteps[i], device=x.device))
            x = solvers.ode_step(x, eps, sigmas[i], sigmas[i + 1])
            if return_intermediates and (i % every == 0 or i >= t_enc - 2):
                kept[i] = x
            if callback is not None:
                callback(i)
        out = {"x_encoded": x, "intermediate_steps": list(kept)}
        return x, out | ({"intermediates": list(kept.values())} if return_intermediates else {})

    @torch.no_grad()
    def stochastic_encode(
        self, x0: Tensor, t: Tensor, use_original_steps: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """x0 [b c h w] noised to the t-th timestep [b] of the schedule (img2img); pairs with `decode`."""
        abar = self.model.alphas_cumprod if use_original_steps else self.ddim_alphas
        abar = abar.to(x0.device)[t][:, None, None, None]  # [b, 1, 1, 1]
        noise = torch.randn_like(x0) if noise is None else noise
        return abar.sqrt() * x0 + (1 - abar).sqrt() * noise

    def _levels(self, original: bool = False) -> tuple[list[int], list[float]]:
        # Ascending timesteps, and ascending sigmas that begin with where the walk down ends.
        abar = self.model.alphas_cumprod
        if original:
            timesteps = list(range(self.ddpm_num_timesteps))
            return timesteps, [0.0, *sigma_levels(timesteps, abar)]
        timesteps = self.ddim_timesteps.tolist()
        return timesteps, sigma_levels([0, *timesteps], abar)

    def _run(
        self, denoise: Denoise, x: Tensor, count: int | None = None, original: bool = False, **hooks: Any
    ) -> SamplerRun:
        timesteps, sigmas = self._levels(original)
        count = len(timesteps) if count is None else count
        check_steps(count, len(timesteps))
        model_timesteps = torch.tensor(timesteps[:count][::-1], device=x.device)
        return SamplerRun(denoise, x, model_timesteps, sigmas[: count + 1][::-1], eta=self.ddim_eta, **hooks)

    def _denoiser(self, cond: Any, uncond: Any, scales: Iterable[float]) -> Denoise:
        model, scales = self.model, iter(scales)
        conditional = partial(_apply, model, cond)
        unconditional = None if uncond is None else partial(_apply, model, uncond)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            out = classifier_free_guidance(conditional, unconditional, next(scales))(x, t)
            return eps_from_v(out, x, t, model.alphas_cumprod) if model.parameterization == "v" else out

        return denoise

    def _scales(self, scale: float, schedule: Sequence[float] | None) -> Iterable[float]:
        if schedule is None:
            return repeat(scale)
        if len(schedule) != len(self.ddim_timesteps):
            raise ValueError(f"ucg_schedule has {len(schedule)} scales for {len(self.ddim_timesteps)} steps")
        return schedule

    def _blend(self, mask: Tensor | None, x0: Tensor | None) -> Blend | None:
        if mask is None:
            return None
        if x0 is None:
            raise ValueError("a mask needs x0, the latent that is kept where the mask is 1")
        return lambda x, t: self.model.q_sample(x0, t) * mask + (1 - mask) * x


def _apply(model: nn.Module, cond: Any, x: Tensor, t: Tensor) -> Tensor:
    return model.apply_model(x, t, cond)


def _tempered(like: Tensor, temperature: float, dropout: float) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        noise = temperature * torch.randn(like.shape, device=like.device).to(like.dtype)
        return F.dropout(noise, dropout) if dropout > 0 else noise

    return draw


def _recorder(
    kept: dict[str, list[Tensor]], every: int, callback: Callable | None, img_callback: Callable | None
) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if callback is not None:
            callback(step.index)
        if img_callback is not None:
            img_callback(step.x0, step.index)
        left = step.total - step.index - 1  # steps behind this one: as published counts go down
        if left % every == 0 or step.index == 0:
            kept["x_inter"].append(step.x)
            kept["pred_x0"].append(step.x0)

    return on_step


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name} is not supported: no ControlNet script uses it; leave it out")


def _warn_of_other_batch(conditioning: Any, batch_size: int) -> None:
    while isinstance(conditioning, dict | list | tuple):
        parts = conditioning.values() if isinstance(conditioning, dict) else conditioning
        conditioning = next((part for part in parts if part is not None), None)
    if isinstance(conditioning, Tensor) and len(conditioning) != batch_size:
        log.warning("got %d conditionings for a batch of %d", len(conditioning), batch_size)
