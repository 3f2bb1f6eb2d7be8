"""Train a pruned model on, so that what is left takes over the work of what went.

U-Net and branch learn together, on the scenes and losses that made the tiny model; autoencoder and text
encoder stay as they are. Zeros of 2:4 pruning stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cldm.cldm import ControlLDM
from ldm.util import pick_device
from quantize.prune.masks import keep_zeros
from trainer.tiny.command import train
from trainer.tiny.settings import TinySettings, claim
from trainer.tiny.stages import STAGES, base_loss, control_loss

WITHOUT_CONTROL = 0.25  # share of steps without the branch: guidance calls the U-Net alone as well
PEAK_RATE = 1e-3  # that of the stages that made it; the warm-up of 100 steps is gentle enough
SOURCE = "source.txt"  # in the folder of checkpoints: what they go on from


@dataclass(frozen=True)
class Recovery:
    """folder: of checkpoints, from which the same call goes on; steps: in all; cache: scenes encoded once."""

    folder: Path
    steps: int
    learning_rate: float = PEAK_RATE
    cache: int = 2000
    seed: int = 0
    workers: int = 1
    device: str = "auto"


class _Denoiser(nn.Module):
    """What learns."""

    def __init__(self, model: ControlLDM) -> None:
        super().__init__()
        self.unet = model.model.diffusion_model
        self.branch = model.control_model


def recover(model: ControlLDM, masked: Iterable[str], source: str, settings: Recovery) -> None:
    """Train `model`, whose weights are float32, up to `settings.steps`; its averaged weights are left in it.

    masked: layers whose zeros stay; source: tells the weights apart that checkpoints go on from. Raises
    ValueError for checkpoints of other weights, FloatingPointError where the loss is no number.
    """
    claim(settings.folder, SOURCE, source, "other weights")
    masked = tuple(masked)

    def learning(whole: ControlLDM) -> nn.Module:
        whole.requires_grad_(False)
        parts = _Denoiser(whole).requires_grad_(True)
        for parameter in parts.parameters():
            parameter.data = parameter.data.clone()  # not the pages of a file
        keep_zeros(whole, masked)
        return parts

    stage = replace(
        STAGES["control"],  # whose name says which scenes are drawn: those with outlines
        steps=settings.steps, lr=settings.learning_rate, trained=learning, loss=_loss,
        prepare=STAGES["base"].prepare, needs=(),
    )  # fmt: skip
    run = TinySettings(settings.folder, seed=settings.seed, cache=settings.cache, workers=settings.workers)
    model.to(pick_device(settings.device), memory_format=torch.channels_last)
    model.model.diffusion_model.encoder_learns = True  # what pruning cut there has to be mended too
    try:
        train(stage, model, run, settings.steps)
    finally:
        model.model.diffusion_model.encoder_learns = False


def _loss(model: ControlLDM, batch: dict, noise: torch.Generator) -> Tensor:
    alone = torch.rand((), generator=noise) < WITHOUT_CONTROL
    return (base_loss if alone else control_loss)(model, batch, noise)
