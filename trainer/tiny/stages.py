"""What each stage of the tiny model trains, and its loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cldm.cldm import ControlLDM
from ldm.modules.unet import UNetModel
from trainer.tiny.latents import cache_latents, whiten
from trainer.tiny.optimizers import MatrixSteps, adamw

KL_WEIGHT = 1e-4  # per latent number against the mean absolute error: latents stay near unit scale and smooth
LATENT_ERROR = 0.1  # of a latent's standard deviation: about what a diffusion model leaves
DROP_PROMPT = 0.1  # share of empty prompts: guidance needs a model that knows them (Ho & Salimans 2022)
POSED = 0.8  # share of upright shapes in the middle, from which the U-Net learns what a shape's name means
START_LOGVAR = -6.0  # little noise at first: latents must carry something before they can be made robust


@dataclass(frozen=True)
class Stage:
    """One part of the training. `prepare` runs before its first step, `finish` on its averaged weights.

    needs: the stages whose weights this one builds on. posed: share of scenes in the middle.
    optimizer: makes it for the trained parts and a learning rate.
    """

    name: str
    steps: int
    batch: int
    lr: float
    trained: Callable[[ControlLDM], nn.Module]
    loss: Callable[[ControlLDM, dict, torch.Generator], Tensor]
    prepare: Callable[[ControlLDM, argparse.Namespace], None]
    finish: Callable[[ControlLDM, argparse.Namespace], None]
    needs: tuple[str, ...] = ()
    posed: float = 0.0
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer | MatrixSteps] = adamw


def _nothing(model: ControlLDM, args: argparse.Namespace) -> None:
    """For stages without a preparation or an end."""


def _vae(model: ControlLDM) -> nn.Module:
    return model.first_stage_model.requires_grad_(True)


def _start_vae(model: ControlLDM, args: argparse.Namespace) -> None:
    """Keep every convolution's variance: by estimate, torch's default lets a colour fade 1000-fold."""
    if args.from_shipped or (args.out / "vae.pt").exists():
        return
    vae = model.first_stage_model
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
            if name.endswith(("conv2", "proj_out")):
                layer.weight.data *= 0.1  # residual branches start small
    half = len(vae.quant_conv.bias) // 2
    vae.quant_conv.bias.data[half:] = START_LOGVAR


def _latent_error(latent: Tensor, noise: torch.Generator) -> Tensor:
    return LATENT_ERROR * latent.std().detach() * torch.randn(latent.shape, generator=noise).to(latent)


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
        latent = model.first_stage_model.encode(target).mode()
        latent = latent + _latent_error(latent, noise)
    return F.l1_loss(model.first_stage_model.decode(latent), target)


def _text_encoder(model: ControlLDM) -> nn.Module:
    return model.cond_stage_model.requires_grad_(True)


def text_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean squared error of what the prompt says, read from the first numbers of every position behind it.

    There is no pretrained CLIP at this size, and a U-Net teaches an untrained one far too slowly: its
    attention does not know yet where to look. Here every position behind the words knows the whole prompt.
    """
    dropped = torch.rand(len(batch["prompt"]), generator=noise) < DROP_PROMPT
    prompts = _drop(batch["prompt"], dropped)
    target = batch["facts"].masked_fill(dropped[:, None], 0).to(model.device)[:, None]
    encoder = model.cond_stage_model
    ids = encoder.tokenizer(prompts, encoder.max_length).to(model.device)
    read = encoder.encode_ids(ids)[:, :, : target.shape[-1]]  # [b, n, 15]
    return ((read - target) ** 2)[ids == encoder.tokenizer.eos_id].mean()


class BaseParts(nn.Module):
    """U-Net and text encoder, trained together."""

    def __init__(self, model: ControlLDM) -> None:
        super().__init__()
        self.unet = model.model.diffusion_model.requires_grad_(True)
        self.text = model.cond_stage_model.requires_grad_(True)


def _unet(model: ControlLDM) -> nn.Module:
    return model.model.diffusion_model.requires_grad_(True)


def _drop(prompts: list[str], dropped: Tensor) -> list[str]:
    return ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]


def _text(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    dropped = torch.rand(len(batch["prompt"]), generator=noise) < DROP_PROMPT
    return model.get_learned_conditioning(_drop(batch["prompt"], dropped))


def _noised(
    model: ControlLDM, batch: dict, noise: torch.Generator, *, late: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps, and the velocity to predict.

    late: draw a third of the timesteps above 900. Only there do colours depend on the prompt, below it the
    noisy latent tells them.
    """
    x0 = batch["latent"].to(model.device)
    b = len(x0)  # one draw from each of b equal parts of [0, 1): less variance than b free ones
    u = (torch.arange(b) + torch.rand(b, generator=noise)) / b
    t = ((1 - (1 - u) ** 2 if late else u) * model.num_timesteps).long()
    t = t.clamp(max=model.num_timesteps - 1).to(model.device)
    eps = torch.randn(x0.shape, generator=noise).to(model.device)
    return model.q_sample(x0, t, eps), t, model.get_v(x0, eps, t)


def base_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, without control."""
    x, t, v = _noised(model, batch, noise)
    # The plain U-Net's forward: the controlled one keeps gradients out of the encoder, which learns here.
    return F.mse_loss(UNetModel.forward(model.model.diffusion_model, x, t, _text(model, batch, noise)), v)


@contextmanager
def _bfloat16(model: ControlLDM) -> Iterator[None]:
    """Two thirds of the time where the CPU multiplies bfloat16; attention is faster as plain products."""
    with torch.autocast(model.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def unet_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """As `base_loss` with timesteps drawn evenly: shapes are decided at all of them, colours at the last."""
    x, t, v = _noised(model, batch, noise, late=False)
    text = _text(model, batch, noise)
    with _bfloat16(model):
        answer = UNetModel.forward(model.model.diffusion_model, x, t, text)
    return F.mse_loss(answer, v)


def _start_unet(model: ControlLDM, args: argparse.Namespace) -> None:
    """Fix the text encoder: it has learned the prompts, and takes a quarter of a step to train."""
    cache_latents(model, args, "posed-latents", POSED)
    model.cond_stage_model.requires_grad_(False)


def _start_branch(model: ControlLDM, args: argparse.Namespace) -> None:
    """Copy the U-Net's encoder into the branch, and freeze what the branch steers."""
    cache_latents(model, args)
    model.requires_grad_(False)
    model.control_model.requires_grad_(True)
    if not (args.from_shipped or (args.out / "control.pt").exists()):
        source = model.model.diffusion_model.state_dict()
        branch = model.control_model.state_dict()
        model.control_model.load_state_dict({**branch, **{k: v for k, v in source.items() if k in branch}})


def _branch(model: ControlLDM) -> nn.Module:
    return model.control_model


def control_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean squared error of the velocity with the outline as control; only the branch learns."""
    x, t, v = _noised(model, batch, noise)
    with torch.no_grad():
        text = _text(model, batch, noise)
    cond = {"c_crossattn": [text], "c_concat": [batch["hint"].to(model.device)]}
    with _bfloat16(model):
        answer = model.apply_model(x, t, cond)
    return F.mse_loss(answer, v)


STAGES = {
    "vae": Stage("vae", 7000, 8, 2e-3, _vae, vae_loss, _start_vae, whiten),
    "decoder": Stage("decoder", 2500, 8, 1e-3, DecoderParts, decoder_loss, _nothing, _nothing, ("vae",)),
    "text": Stage("text", 2000, 64, 2e-3, _text_encoder, text_loss, _nothing, _nothing),
    "base": Stage("base", 10_200, 16, 1e-3, BaseParts, base_loss, cache_latents, _nothing, ("vae", "text")),
    "unet": Stage(
        "unet", 3800, 32, 1e-3, _unet, unet_loss, _start_unet, _nothing, ("vae", "base"), POSED, MatrixSteps
    ),
    "control": Stage(
        "control", 3000, 16, 1e-3, _branch, control_loss, _start_branch, _nothing, ("vae", "base")
    ),
}
