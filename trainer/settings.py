"""What a training run is told: one frozen dataclass for each group of flags, the flags in their fields.

Names and defaults are those of diffusers' train_controlnet.py where it has the flag, lllyasviel's scripts'
where they have it. Nothing heavy is imported here, so that --help answers at once.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, BooleanOptionalAction
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from common.flags import flag

BranchKind = Literal["full", "lite"]
Preset = Literal["38gb", "20gb", "16gb", "12gb", "8gb"]
Report = Literal["tensorboard", "csv", "wandb", "all", "none"]
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]  # fmt: skip
GENERATED_DATA = Path("training/fill50k")
ALL_DEVICES = -1
BESIDE_THE_DATA = Path()  # --cache-latents without a folder


def count(text: str) -> int:
    """A whole number above 0, as argparse wants its types."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


@dataclass(frozen=True)
class ModelSettings:
    """Which weights a run begins with, and what of them learns."""

    config: Path | None = flag(None, "default: models/tiny.yaml with settings that suit it", metavar="YAML")
    weights: tuple[Path, ...] | None = flag(
        None, "base model; where no branch is in it a new one begins as its encoder's copy",
        "--resume-path", "--pretrained-model-name-or-path", metavar="FILE",
    )  # fmt: skip
    controlnet: Path | None = flag(
        None, "control branch to begin with", "--controlnet-model-name-or-path", metavar="FILE"
    )
    branch: BranchKind | None = flag(None, "its kind (default: what the yaml has, else full)")
    use_ema: bool = flag(False, "begin from the moving averages that the base carries")
    unlock_sd: bool = flag(False, "train the U-Net's output half too (sd_locked=False)")
    only_mid_control: bool = flag(False, "let the branch act on the middle block alone")


@dataclass(frozen=True)
class DataSettings:
    """Which pairs are learned from, and how they are seen."""

    data: Path = flag(
        GENERATED_DATA, "folder or list of pairs; the default one is generated if it is missing",
        "--data", "--train-data-dir", metavar="PATH",
    )  # fmt: skip
    train_samples: int = flag(2000, "how many pairs to generate then", metavar="N", type=count)
    image_column: str | None = flag(None, "of the image (default: target or image)", metavar="NAME")
    conditioning_image_column: str | None = flag(
        None, "(default: source or conditioning_image)", metavar="NAME"
    )
    caption_column: str | None = flag(None, "of the text (default: prompt or text)", metavar="NAME")
    max_train_samples: int | None = flag(None, "use only the first N pairs", metavar="N")
    resolution: int | None = flag(
        None, "side of the images, a multiple of 64 (default: the model's)", metavar="PX"
    )
    random_crop: bool = flag(False, "cut images that are no squares anywhere, not in the middle")
    flip: bool = flag(False, "turn every second pair over, left to right")
    empty_prompts: float = flag(0.0, "share of prompts left out", "--proportion-empty-prompts", metavar="X")
    workers: int = flag(0, "processes that read images", "--dataloader-num-workers", metavar="N")
    validate_data: bool = flag(False, "check every pair, name the first bad ones, and stop")


@dataclass(frozen=True)
class LengthSettings:
    """How long a run is, and where it stops by the way."""

    batch: int = flag(
        4, "pairs a step and device", "--train-batch-size", "--batch-size", metavar="N", type=count
    )
    accumulate: int = flag(1, "batches a step", "--gradient-accumulation-steps", metavar="N", type=count)
    epochs: int = flag(1, "turns through the data", "--num-train-epochs", metavar="N", type=count)
    max_train_steps: int | None = flag(None, "optimizer steps, instead of turns", metavar="N", type=count)
    checkpointing_steps: int = flag(500, "steps between checkpoints", metavar="N", type=count)
    checkpoints_total_limit: int | None = flag(None, "keep only the last N checkpoints", metavar="N")
    resume_from: str | None = flag(
        None, "go on from a checkpoint: a path, or latest",
        "--resume-from", "--resume-from-checkpoint", metavar="NAME",
    )  # fmt: skip


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate goes over a run; total: its optimizer steps, which the plan fills in."""

    peak: float = flag(1e-5, "", "--learning-rate", metavar="X")
    schedule: Schedule = flag("constant", "its course", "--lr-scheduler")
    warmup: int = flag(500, "of every course but constant", "--lr-warmup-steps", metavar="N")
    cycles: int = flag(1, "of cosine_with_restarts", "--lr-num-cycles", metavar="N")
    power: float = flag(1.0, "of polynomial", "--lr-power", metavar="X")
    scale_lr: bool = flag(False, "multiply the rate by batch, accumulation and devices")
    total: int = 1

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ValueError(f"learning rate {self.peak}: it must be above 0")
        if self.warmup < 0 or self.total < 1:
            raise ValueError(f"{self.warmup} warm-up steps of {self.total}: give 0 or more of 1 or more")


@dataclass(frozen=True)
class Optimization:
    """The optimizer, AdamW, and the average of what it makes."""

    use_8bit_adam: bool = flag(False, "needs bitsandbytes", action=BooleanOptionalAction)
    beta1: float = flag(0.9, "", "--adam-beta1", metavar="X")
    beta2: float = flag(0.999, "", "--adam-beta2", metavar="X")
    weight_decay: float = flag(1e-2, "", "--adam-weight-decay", metavar="X")
    epsilon: float = flag(1e-8, "", "--adam-epsilon", metavar="X")
    max_grad_norm: float = flag(1.0, "of all gradients together, 0 is no limit", metavar="X")
    set_grads_to_none: bool = flag(True, "free gradients between steps")
    ema_decay: float = flag(0.0, "average what learns, such as 0.999; 0 is off", metavar="X")

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: 0 is none, else below 1, such as 0.999")
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: 0 is no limit, 1 is usual")


@dataclass(frozen=True)
class Loss:
    """What the loss is made of; with the number of a sample, `seed` says all that is random about it."""

    snr_gamma: float | None = flag(None, "Min-SNR weights, usually 5; off by default", metavar="X")
    noise_offset: float = flag(0.0, "usually 0.1; 0 is off", metavar="X")
    seed: int = flag(0, "of everything random", metavar="N")

    def __post_init__(self) -> None:
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"snr_gamma={self.snr_gamma}: it must be above 0; 5 is usual")
        if self.noise_offset < 0:
            raise ValueError(f"noise_offset={self.noise_offset}: 0 is off, 0.1 is usual")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")


@dataclass(frozen=True)
class TrainingSettings:
    """All of a run that is about learning, not about files or machines."""

    rate: LearningRate = LearningRate()
    loss: Loss = Loss()
    optimization: Optimization = Optimization()


@dataclass(frozen=True)
class MemorySettings:
    """What trades memory against time."""

    preset: Preset | None = flag(None, "flags for a GPU of this size; each may be given besides")
    gradient_checkpointing: bool | None = flag(
        None, "compute activations twice (default: as the config says)"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("no", "of what is computed")
    lean_attention: bool = flag(
        False, "never fall back to attention that holds whole matrices; torch's own kernels, no xformers",
        "--enable-xformers-memory-efficient-attention", action=BooleanOptionalAction,
    )  # fmt: skip
    allow_tf32: bool = flag(False, "faster float32 on recent GPUs, a little less exact")
    cache_latents: Path | None = flag(
        None, "compute latents and texts once into DIR (default: beside the data); the autoencoder and the "
        "text encoder then leave memory", metavar="DIR", nargs="?", const=BESIDE_THE_DATA,
    )  # fmt: skip


@dataclass(frozen=True)
class MachineSettings:
    """Where a run computes."""

    device: str = flag("auto", "auto, cpu, cuda or mps", metavar="NAME")
    devices: int = flag(1, "processes on each node, one a GPU", metavar="N")
    num_nodes: int = flag(1, "", metavar="M", type=count)
    strategy: str = flag(
        "auto", "ddp, fsdp, deepspeed_stage_2[_offload] and others of Lightning's", metavar="NAME"
    )

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it, which clips and saves in its own way."""
        return self.strategy.startswith("deepspeed")

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's states are in the host's memory."""
        return self.is_deepspeed and self.strategy.endswith("offload")


@dataclass(frozen=True)
class ReportSettings:
    """What a run shows of itself while it goes on."""

    image_log_steps: int = flag(300, "steps between grids in image_log/train, 0 for none", metavar="N")
    validation_prompt: tuple[str, ...] = flag((), "as many as images, or one for all", metavar="TEXT")
    validation_image: tuple[Path, ...] = flag((), "control images", metavar="FILE")
    num_validation_images: int = flag(4, "samples of each", metavar="N", type=count)
    validation_steps: int = flag(100, "steps between grids in image_log/validation", metavar="N", type=count)
    sample_steps: int = flag(20, "of the sampler, in both", metavar="N", type=count)
    guidance_scale: float | None = flag(None, "in both (default: the model's, else 9)", metavar="X")
    report_to: tuple[Report, ...] = flag(
        ("tensorboard",), "where numbers go (default: tensorboard)", type=str, choices=get_args(Report)
    )
    logging_dir: Path = flag(Path("logs"), "inside the output folder")
    tracker_project_name: str = flag("train_controlnet", "of wandb", metavar="NAME")


@dataclass(frozen=True)
class OutputSettings:
    """What a run hands out."""

    folder: Path = flag(Path("controlnet-model"), "made if missing", "--output-dir", "--out", metavar="DIR")
    file_format: Literal["safetensors", "ckpt"] = flag(
        "safetensors", "of the original-names file", "--output-format"
    )
    push_to_hub: bool = flag(False, "upload the result")
    hub_token: str | None = flag(None, "default: the one you logged in with", metavar="TOKEN")
    hub_model_id: str | None = flag(
        None, "of the repository (default: the output folder's name)", metavar="NAME"
    )


@dataclass(frozen=True)
class RunSettings(TrainingSettings):
    """All flags of one run, by their groups."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    length: LengthSettings = LengthSettings()
    memory: MemorySettings = MemorySettings()
    machines: MachineSettings = MachineSettings()
    reports: ReportSettings = ReportSettings()
    output: OutputSettings = OutputSettings()
