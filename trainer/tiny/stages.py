"""What each stage of the tiny model trains, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cldm.cldm import ControlLDM
from ldm.modules.unet import UNetModel
from trainer.tiny.data import Posed, never
from trainer.tiny.first_stage import (
    DecoderParts,
    decoder_loss,
    learn_autoencoder,
    start_autoencoder,
    vae_loss,
)
from trainer.tiny.latents import whiten
from trainer.tiny.optimizers import MatrixSteps, adamw
from trainer.tiny.settings import TinySettings

DROP_PROMPT = 0.1  # share of empty prompts: guidance needs a model that knows them (Ho & Salimans 2022)
ALONE_EVERY = 3  # of the joint stage's scenes one is shown without its map, upright and in the middle


def mostly(index: int) -> float:
    """Four scenes in five are posed: from them the U-Net learns what a shape's name means."""
    return 0.8


def alone(index: int) -> float:
    """Scenes that the joint stage shows without a map, so many in every batch."""
    return float(index % ALONE_EVERY == 0)


@dataclass(frozen=True)
class Stage:
    """One part of the training. `prepare` runs before its first step, `finish` on its averaged weights.

    needs: the stages whose weights this one builds on. posed: which scenes are.
    on_latents: learns from cached latents instead of pictures. optimizer: makes it for the trained parts and
    a learning rate.
    """

    name: str
    steps: int  # optimizer steps, where the command says nothing
    batch: int  # samples a step
    lr: float  # the highest; see `trainer.tiny.command.learning_rate`
    trained: Callable[[ControlLDM], nn.Module]
    loss: Callable[[ControlLDM, dict, torch.Generator], Tensor]
    prepare: Callable[[ControlLDM, TinySettings], None]
    finish: Callable[[ControlLDM, TinySettings], None]
    needs: tuple[str, ...] = ()
    posed: Posed = never
    on_latents: bool = True
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer | MatrixSteps] = adamw


def _nothing(model: ControlLDM, settings: TinySettings) -> None:
    """For stages without a preparation or an end."""


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
    ids = encoder.tokenizer(prompts, encoder.max_length).to(model.device)  # [b, n]
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
    eps = torch.randn(x0.shape, generator=noise).to(model.device)  # on the CPU: a seed is the same anywhere
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


def _start_unet(model: ControlLDM, settings: TinySettings) -> None:
    """Fix the text encoder: it has learned the prompts, and takes a quarter of a step to train."""
    model.cond_stage_model.requires_grad_(False)


def _start_branch(model: ControlLDM, settings: TinySettings) -> None:
    """Copy the U-Net's encoder into the branch, and freeze what the branch steers."""
    model.requires_grad_(False)
    model.control_model.requires_grad_(True)
    if not (settings.from_shipped or (settings.out / "control.pt").exists()):
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


class JointParts(nn.Module):
    """U-Net and branch, trained together."""

    def __init__(self, model: ControlLDM) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.unet = model.model.diffusion_model.requires_grad_(True)
        self.branch = model.control_model.requires_grad_(True)
        self.unet.encoder_learns = True


def joint_loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    """Mean squared error of the velocity: posed scenes by their prompt alone, the others with their map.

    So one run makes both files. A branch that only a finished base could teach would begin too late.
    """
    order = batch["posed"].long().argsort(stable=True)  # steered ones first: one slice is the branch's
    steered = int((~batch["posed"]).sum())
    prompts = [batch["prompt"][i] for i in order]
    x, t, v = _noised(model, {"latent": batch["latent"][order]}, noise)
    with torch.no_grad():
        text = _text(model, {"prompt": prompts}, noise)
    hint = batch["hint"][order][:steered].to(model.device)
    with _bfloat16(model):
        residuals = model.control_model(x[:steered], hint, t[:steered], text[:steered])
        control = [F.pad(one, (0, 0, 0, 0, 0, 0, 0, len(x) - steered)) for one in residuals]
        answer = model.model.diffusion_model(x, t, text, control=control)
    return F.mse_loss(answer, v)


STAGES = {
    "vae": Stage(
        "vae", 7000, 8, 2e-3, learn_autoencoder, vae_loss, start_autoencoder, whiten, on_latents=False
    ),
    "decoder": Stage(
        "decoder", 2500, 8, 1e-3, DecoderParts, decoder_loss, _nothing, _nothing, ("vae",), on_latents=False
    ),
    "text": Stage(
        "text", 2000, 64, 1e-3, _text_encoder, text_loss, _nothing, _nothing, on_latents=False,
        optimizer=MatrixSteps,
    ),
    "base": Stage("base", 10_200, 16, 1e-3, BaseParts, base_loss, _nothing, _nothing, ("vae", "text")),
    "unet": Stage(
        "unet", 3800, 32, 1e-3, _unet, unet_loss, _start_unet, _nothing, ("vae", "base"), mostly,
        optimizer=MatrixSteps,
    ),
    "control": Stage(
        "control", 3000, 16, 1e-3, _branch, control_loss, _start_branch, _nothing, ("vae", "base")
    ),
    "joint": Stage(
        "joint", 3000, 32, 1e-3, JointParts, joint_loss, _nothing, _nothing, ("vae", "text"), alone,
        optimizer=MatrixSteps,
    ),
}  # fmt: skip
