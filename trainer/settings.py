"""What training is told, as data: how pairs are seen, the loss, the optimizer and its learning rate.

Each field is a flag of tutorial_train.py too (`trainer.flags` has the others). Names and defaults are those
of diffusers' train_controlnet.py where it has the flag, else lllyasviel's. Nothing heavy is imported here.
"""

from __future__ import annotations

from argparse import BooleanOptionalAction
from dataclasses import dataclass
from typing import Literal

from common.flags import flag

Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]  # fmt: skip
RESOLUTION_STEP = 64  # the U-Net halves the latent three times, the autoencoder the image three times


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a list; None for the usual ones."""

    image: str | None = flag(None, "(default: target or image)", "--image-column", metavar="NAME")
    hint: str | None = flag(None, "(default: source or conditioning_image)", "--conditioning-image-column")
    text: str | None = flag(None, "(default: prompt or text)", "--caption-column", metavar="NAME")


@dataclass(frozen=True)
class Transform:
    """How a pair becomes a sample; resolution: side of the square in pixels, None for the model's."""

    resolution: int | None = flag(None, "pixels a side, a multiple of 64 (default: the model's)")
    random_crop: bool = flag(False, "cut images that are no squares anywhere, not in the middle")
    flip: bool = flag(False, "turn every second pair over, left to right")
    empty_prompts: float = flag(0.0, "share of prompts left out", "--proportion-empty-prompts")

    def __post_init__(self) -> None:
        side = self.resolution
        if side is not None and (side < RESOLUTION_STEP or side % RESOLUTION_STEP):
            raise ValueError(f"resolution={side}: give a multiple of {RESOLUTION_STEP}, such as 512")
        if not 0 <= self.empty_prompts <= 1:
            raise ValueError(f"proportion of empty prompts {self.empty_prompts}: a share is between 0 and 1")


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate goes over a run; total: its optimizer steps, which the plan fills in."""

    peak: float = flag(1e-5, "", "--learning-rate")
    schedule: Schedule = flag("constant", "its course", "--lr-scheduler")
    warmup: int = flag(500, "of every course but constant", "--lr-warmup-steps")  # diffusers' default
    cycles: int = flag(1, "of cosine_with_restarts", "--lr-num-cycles")
    power: float = flag(1.0, "of polynomial", "--lr-power")  # 1 is a straight line
    scale_lr: bool = flag(False, "multiply the rate by batch, accumulation and devices")
    total: int = 1  # no flag: it follows from data and epochs

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ValueError(f"learning rate {self.peak}: it must be above 0")
        if self.warmup < 0 or self.total < 1:
            raise ValueError(f"{self.warmup} warm-up steps of {self.total}: give 0 or more of 1 or more")


@dataclass(frozen=True)
class Loss:
    """What the loss is made of; with the number of a sample, `seed` says all that is random about it."""

    snr_gamma: float | None = flag(None, "Min-SNR weights of noise or velocity, usually 5; off by default")
    noise_offset: float = flag(0.0, "usually 0.1; 0 is off")  # constant over a channel
    seed: int = flag(0, "of everything random")

    def __post_init__(self) -> None:
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"snr_gamma={self.snr_gamma}: it must be above 0; 5 is usual")
        if self.noise_offset < 0:
            raise ValueError(f"noise_offset={self.noise_offset}: 0 is off, 0.1 is usual")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")


@dataclass(frozen=True)
class Optimization:
    """The optimizer, AdamW, and the average of what it makes."""

    use_8bit_adam: bool = flag(False, "needs bitsandbytes", action=BooleanOptionalAction)
    beta1: float = flag(0.9, "", "--adam-beta1")  # these four are diffusers' too
    beta2: float = flag(0.999, "", "--adam-beta2")
    weight_decay: float = flag(1e-2, "", "--adam-weight-decay")
    epsilon: float = flag(1e-8, "", "--adam-epsilon")
    max_grad_norm: float = flag(1.0, "of all gradients together, 0 is no limit")
    set_grads_to_none: bool = flag(True, "free gradients between steps")
    ema_decay: float = flag(0.0, "average what learns, such as 0.999; 0 is off")

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:  # at 1 the average would never learn
            raise ValueError(f"ema_decay={self.ema_decay}: 0 is none, else below 1, such as 0.999")
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: 0 is no limit, 1 is usual")


@dataclass(frozen=True)
class TrainingSettings:
    """All of a run that is about learning, not about files or machines."""

    rate: LearningRate = LearningRate()  # frozen, so that one default serves all
    loss: Loss = Loss()
    optimization: Optimization = Optimization()
