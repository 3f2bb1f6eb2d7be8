"""The first stage of a tiny model: training its autoencoder, then the decoder alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cldm.cldm import ControlLDM
from ldm.models.autoencoder import AutoencoderKL
from trainer.tiny.settings import TinySettings

KL_WEIGHT = 1e-4  # per latent number against the mean absolute error: latents stay near unit scale and smooth
LATENT_ERROR = 0.1  # of a latent channel's standard deviation: about what a diffusion model leaves
START_LOGVAR = -6.0  # little noise at first: latents must carry something before they can be made robust
QUIET = 0.5  # of a new channel's random weights: the old ones know already what they say
MOMENTS = ("encoder.conv_out.", "quant_conv.")  # their channels are means, then log-variances
LATENT = (*MOMENTS, "post_quant_conv.", "decoder.conv_in.")


def learn_autoencoder(model: ControlLDM) -> nn.Module:
    """The autoencoder, learning."""
    return model.first_stage_model.requires_grad_(True)


def start_autoencoder(model: ControlLDM, settings: TinySettings) -> None:
    """Begin with another autoencoder, or keep every convolution's variance.

    By estimate, torch's default lets a colour fade 1000-fold.
    """
    if settings.from_shipped or (settings.out / "vae.pt").exists():
        return
    vae = model.first_stage_model
    if settings.vae_from:
        prefix, file = "first_stage_model.", load_file(settings.vae_from)
        old = {name.removeprefix(prefix): value for name, value in file.items() if name.startswith(prefix)}
        widen_autoencoder(vae, old)
        return
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
            if name.endswith(("conv2", "proj_out")):
                layer.weight.data *= 0.1  # residual branches start small
    half = len(vae.quant_conv.bias) // 2  # means first, then log-variances
    vae.quant_conv.bias.data[half:] = START_LOGVAR


def _latent_error(latent: Tensor, noise: torch.Generator) -> Tensor:
    spread = latent.std(dim=(0, 2, 3), keepdim=True).detach()  # a diffusion model errs in shares of it
    return LATENT_ERROR * spread * torch.randn(latent.shape, generator=noise).to(latent)


def vae_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean absolute error of the reconstruction, and a little divergence from N(0, 1).

    Latents are decoded as slightly wrong as a diffusion model makes them.
    """
    target = batch["target"].to(model.device).flatten(0, 1)
    vae = model.first_stage_model
    posterior = vae.encode(target)
    error = _latent_error(posterior.mean, noise)
    pixels = vae.decode(posterior.sample(noise) + error)
    return F.l1_loss(pixels, target) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


class DecoderParts(nn.Module):
    """The half of the autoencoder that may go on learning once latents are fixed."""

    def __init__(self, model: ControlLDM) -> None:
        super().__init__()
        vae = model.first_stage_model.requires_grad_(False)
        self.post_quant_conv = vae.post_quant_conv.requires_grad_(True)
        self.decoder = vae.decoder.requires_grad_(True)


def decoder_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean absolute error of the reconstruction; the encoder, and so every cached latent, stays as it is."""
    target = batch["target"].to(model.device).flatten(0, 1)
    with torch.no_grad():
        latent = model.first_stage_model.encode(target).mode()  # [b, c, h, w], without a draw
        latent = latent + _latent_error(latent, noise)
    return F.l1_loss(model.first_stage_model.decode(latent), target)


@torch.no_grad()
def widen_autoencoder(vae: AutoencoderKL, old: Mapping[str, Tensor]) -> None:
    """Put the weights `old` of an autoencoder with fewer latent channels into `vae`, in place.

    The old channels are first and whole; the decoder does not rely on the new ones yet. At random, plain
    colours alone take thousands of steps.
    Raises ValueError where anything but the number of latent channels differs.
    """
    for name, value in vae.state_dict().items():
        before = old[name].to(value)
        if value.shape != before.shape:
            if not name.startswith(LATENT) or value.ndim != before.ndim:
                shapes = f"{tuple(before.shape)} and {tuple(value.shape)}"
                raise ValueError(f"{name}: {shapes} differ by more than the number of latent channels")
            _begin(name, value)
        if name.startswith(MOMENTS):
            value, before = (_halved(name, one) for one in (value, before))
        value[tuple(map(slice, before.shape))] = before


def _begin(name: str, value: Tensor) -> None:
    """What new channels start from: 1x1 convolutions pass means on, and say that there is little noise."""
    if value.ndim > 1 and "quant_conv" not in name:
        value.mul_(QUIET)
        return
    value.zero_()
    means = len(value) // 2 if name.startswith(MOMENTS) else len(value)
    if value.ndim > 1:
        value[:means, :means, 0, 0] = torch.eye(means)  # [out, in, 1, 1]
    elif name == "quant_conv.bias":
        value[means:] = START_LOGVAR


def _halved(name: str, value: Tensor) -> Tensor:
    """A view with means and log-variances apart: [2, z, ...]; quant_conv's weight [2, z, 2, z, 1, 1]."""
    value = value.unflatten(0, (2, -1))
    return value.unflatten(2, (2, -1)) if name == "quant_conv.weight" else value
