"""Latent diffusion: schedule, U-Net, autoencoder and text encoder in one module, under the published names.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; Rombach et al. 2022. Training loops live
elsewhere: this is an `nn.Module` with the functions that both training and sampling need. In half precision
its schedule stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.models.autoencoder import DiagonalGaussianDistribution
from ldm.models.diffusion.samplers import eps_from_v
from ldm.models.diffusion.schedule import schedule_buffers
from ldm.util import config_from, instantiate_from_config

PARAMETERIZATIONS = ("eps", "v")
# Published yaml files carry these; they belong to trainers or to variants that no ControlNet uses.
INERT_PARAMS = frozenset({
    "num_timesteps_cond", "log_every_t", "cond_stage_trainable", "conditioning_key", "monitor", "use_ema",
    "image_size", "channels", "ckpt_path", "ignore_keys", "load_only_unet", "scheduler_config",
})  # fmt: skip


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of latent diffusion, under the names of the published yaml files.

    linear_start, linear_end: first and last beta; parameterization: what the U-Net predicts, noise (`eps`) or
    velocity (`v`, Salimans & Ho 2022); scale_factor: brings latents to about unit variance.
    """

    timesteps: int = 1000  # all published Stable Diffusion has these
    linear_start: float = 0.00085  # of betas evenly spaced in their square root
    linear_end: float = 0.0120
    parameterization: str = "eps"
    scale_factor: float = 0.18215
    first_stage_key: str = "jpg"  # of a batch: its images
    cond_stage_key: str = "txt"  # its texts


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under its published name, `diffusion_model`."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


class LatentDiffusion(nn.Module):
    """Text-conditioned diffusion in the latent space of a frozen autoencoder.

    leading: modules that published files store ahead of the U-Net.
    """

    def __init__(self, *, unet_config: Mapping[str, Any], first_stage_config: Mapping[str, Any],
                 cond_stage_config: Mapping[str, Any], leading: Mapping[str, nn.Module] | None = None,
                 **params: Any) -> None:  # fmt: skip
        super().__init__()
        self.config = config_from(DiffusionConfig, params, "the diffusion model", INERT_PARAMS)
        if self.config.parameterization not in PARAMETERIZATIONS:
            got, known = self.config.parameterization, ", ".join(PARAMETERIZATIONS)
            raise ValueError(f"unknown parameterization {got!r}: use {known}")
        self.parameterization = self.config.parameterization
        self.num_timesteps = self.config.timesteps
        self.scale_factor = self.config.scale_factor
        self.first_stage_key, self.cond_stage_key = self.config.first_stage_key, self.config.cond_stage_key
        self.learning_rate = 1e-5  # published scripts overwrite it

        limits = self.config.linear_start, self.config.linear_end
        for name, value in schedule_buffers(self.num_timesteps, *limits).items():
            self.register_buffer(name, value)
        self.register_buffer("logvar", torch.zeros(self.num_timesteps, device="cpu"))
        for name, module in (leading or {}).items():
            self.add_module(name, module)
        self.model = DiffusionWrapper(instantiate_from_config(unet_config))
        self.first_stage_model = instantiate_from_config(first_stage_config).eval().requires_grad_(False)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        self.register_load_state_dict_pre_hook(_fill_absent_buffers)

    @property
    def device(self) -> torch.device:
        """Where the schedule lives; parts may be elsewhere for a while under `low_vram_shift`."""
        return self.betas.device

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Text embeddings [b, n, d] of `prompts`."""
        return self.cond_stage_model.encode(prompts)

    def get_unconditional_conditioning(self, n: int) -> Tensor:
        """Embeddings [n, 77, d] of empty prompts."""
        return self.get_learned_conditioning([""] * n)

    def encode_first_stage(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over unscaled latents of `pixels` [b, 3, H, W] in [-1, 1]."""
        return self.first_stage_model.encode(pixels)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution | Tensor,
                                 generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
        """Scaled latents [b, c, h, w]: a draw from `posterior`, or `posterior` itself when it is a tensor."""
        latent = posterior if isinstance(posterior, Tensor) else posterior.sample(generator)
        return self.scale_factor * latent  # about unit variance

    def decode_first_stage(self, latent: Tensor) -> Tensor:
        """Pixels [b, 3, H, W], about [-1, 1], of scaled latents; never NaN where float32 would not be."""
        return self.first_stage_model.decode(latent / self.scale_factor)

    def get_input(self, batch: Mapping[str, Any], key: str) -> tuple[Tensor, Tensor]:
        """Latents [b, c, h, w] of `batch[key]` ([b, H, W, 3] in [-1, 1]) and the embeddings of its texts."""
        with torch.no_grad():
            pixels = rearrange(batch[key], "b H W c -> b c H W").to(self.device, torch.float32).contiguous()
            latent = self.get_first_stage_encoding(self.encode_first_stage(pixels))
            return latent, self.get_learned_conditioning(list(batch[self.cond_stage_key]))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Noise `x_start` to level `t`: sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4).

        x_start, noise: [b, c, h, w] scaled latents; t: [b] integers in [0, num_timesteps).
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        signal, level = self._at(self.sqrt_alphas_cumprod, t), self._at(self.sqrt_one_minus_alphas_cumprod, t)
        return (signal * x_start + level * noise).to(x_start.dtype)

    def get_v(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x0 (Salimans & Ho 2022, appendix D).

        Shapes as `q_sample`.
        """
        signal, level = self._at(self.sqrt_alphas_cumprod, t), self._at(self.sqrt_one_minus_alphas_cumprod, t)
        return (signal * noise - level * x).to(x.dtype)

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The U-Net's answer for [b, c, h, w] latents at [b] timesteps; `cond["c_crossattn"]` = [text]."""
        text = torch.cat(list(cond["c_crossattn"]), dim=1)  # [b, n, d]
        return self.model.diffusion_model(x_noisy, t, context=text)

    def predict_eps(self, x: Tensor, t: Tensor, cond: Mapping[str, Any], **options: Any) -> Tensor:
        """`apply_model` as noise, whatever the parameterization; t: [b], whole or with fractions."""
        out = self.apply_model(x, t, cond, **options)
        return out if self.parameterization == "eps" else eps_from_v(out, x, t, self.alphas_cumprod)

    def p_losses(self, x_start: Tensor, cond: Mapping[str, Any], t: Tensor,
                 noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Mean squared error of the prediction at level `t` (Ho et al. 2020, eq. 14), and what to log.

        x_start, noise: [b, c, h, w]; t: [b].
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        prediction = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        target = noise if self.parameterization == "eps" else self.get_v(x_start, noise, t)
        loss = F.mse_loss(prediction.float(), target.float())  # of halves the squares would vanish
        prefix = "train" if self.training else "val"
        return loss, {f"{prefix}/loss_simple": loss.detach(), f"{prefix}/loss": loss.detach()}

    def forward(self, x_start: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """`p_losses` at timesteps drawn uniformly."""
        t = torch.randint(0, self.num_timesteps, (x_start.shape[0],), device=x_start.device)
        return self.p_losses(x_start, cond, t)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentDiffusion:
        # What `half()`, `to()` and their like call. A schedule rounded to half precision would be wrong: its
        # first alphas_cumprod all become 1.
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    @staticmethod
    def _at(buffer: Tensor, t: Tensor) -> Tensor:
        return buffer.to(t.device)[t][:, None, None, None]


def _fill_absent_buffers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Base files lack `logvar`, merged ones the whole schedule: both follow from the yaml."""
    for name, buffer in module.named_buffers(recurse=False):
        state.setdefault(prefix + name, buffer)
