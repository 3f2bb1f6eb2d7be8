"""What a training run is told, as data: nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate goes over the run; names and defaults are those of diffusers.

    peak: None for the model's own `learning_rate`. cycles: of the cosine with restarts. total:
    optimizer steps of the whole run.
    """

    peak: float | None = None
    schedule: str = "constant"
    warmup: int = 500
    cycles: int = 1
    power: float = 1.0
    total: int = 1

    def __post_init__(self) -> None:
        if self.peak is not None and self.peak <= 0:
            raise ValueError(f"learning rate {self.peak}: it must be above 0")
        if self.warmup < 0 or self.total < 1:
            raise ValueError(f"{self.warmup} warm-up steps of {self.total}: give 0 or more of 1 or more")


@dataclass(frozen=True)
class Loss:
    """What the loss is made of.

    snr_gamma: limit of the signal-to-noise ratio that a timestep's weight grows to (Hang et al. 2023), None
    for equal weights. noise_offset: strength of a further noise that is one number a channel. seed: of the
    noise; with the number of a draw it says everything random about that draw.
    """

    snr_gamma: float | None = None
    noise_offset: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"snr_gamma={self.snr_gamma}: it must be above 0; 5 is usual")
        if self.noise_offset < 0:
            raise ValueError(f"noise_offset={self.noise_offset}: 0 is off, 0.1 is usual")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")


@dataclass(frozen=True)
class Optimization:
    """The optimizer, AdamW, under diffusers' names and defaults.

    clip: largest norm of all gradients together, 0 for no limit. grads_to_none: free gradients between steps
    and do not zero them. ema_decay: of the moving average of what learns, 0 for none.
    """

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    epsilon: float = 1e-8
    clip: float = 1.0
    grads_to_none: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.name!r}: use {', '.join(OPTIMIZERS)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: 0 is none, else below 1, such as 0.999")
        if self.clip < 0:
            raise ValueError(f"max_grad_norm={self.clip}: 0 is no limit, 1 is usual")


@dataclass(frozen=True)
class TrainingSettings:
    """All of a run that is about learning, not about files or machines."""

    rate: LearningRate = LearningRate()
    loss: Loss = Loss()
    optimization: Optimization = Optimization()
