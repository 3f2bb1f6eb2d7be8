"""Flags -> what a run is made of: settings, files, view of the data, and the plan of its memory."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from cldm.model import with_branch
from ldm.config import read_config
from trainer.data.dataset import View
from trainer.data.rows import Columns
from trainer.memory import Plan
from trainer.settings import LearningRate, Loss, Optimization, TrainingSettings

COUNTS = (
    "batch", "accumulate", "num_train_epochs", "checkpointing_steps", "validation_steps", "num_nodes",
    "train_samples", "num_validation_images", "sample_steps",
)  # fmt: skip
ALL = -1  # devices
PIXELS_PER_LATENT = 8
SD_SIDE, SD_SCALE = 64, 9.0  # latent side and guidance where the yaml names none
CONTROL_FILE = "control"  # in the name of the tiny model's branch, which a run begins anew


@dataclass(frozen=True)
class Setup:
    """What the flags and the yaml say together; scale: of guidance in pictures."""

    config: DictConfig
    weights: tuple[Path, ...]
    settings: TrainingSettings
    view: View
    columns: Columns
    scale: float
    step_pairs: int
    epochs: int
    steps: int | None

    def for_rows(self, count: int) -> Setup:
        """The same with the number of steps known, for `count` pairs."""
        total = self.steps or math.ceil(count / self.step_pairs) * self.epochs
        rate = replace(self.settings.rate, total=total)
        return replace(self, steps=total, settings=replace(self.settings, rate=rate))


def read_setup(args: argparse.Namespace) -> Setup:
    """The setup of a command line. Raises ValueError or FileNotFoundError for what cannot be."""
    from trainer.flags import TINY_CONFIG

    here = Path(__file__).parents[1]
    config_path = args.config or here / TINY_CONFIG
    config = with_branch(config_path, args.branch) if args.branch else read_config(config_path)
    defaults = config.get("defaults") or {}
    side = config.model.params.get("image_size", SD_SIDE) * PIXELS_PER_LATENT
    resolution = args.resolution or defaults.get("resolution", side)
    weights = list(args.weights or [config_path.parent / name for name in config.get("weights") or []])
    if args.weights is None and args.controlnet is None:
        weights = [path for path in weights if CONTROL_FILE not in path.stem]  # a run begins a new branch
    if not weights:
        raise ValueError(f"{config_path} names no weights: give the base model by --resume-path")
    weights += [args.controlnet] if args.controlnet else []
    for name in COUNTS:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more")
    if args.devices == ALL:
        args.devices = max(1, torch.cuda.device_count())
    pairs = args.batch * args.accumulate * args.devices * args.num_nodes
    return Setup(
        config=config,
        weights=tuple(weights),
        settings=_settings(args, pairs),
        view=View(resolution, args.random_crop, args.flip, args.proportion_empty_prompts),
        columns=Columns(args.image_column, args.conditioning_image_column, args.caption_column),
        scale=args.guidance_scale or defaults.get("scale", SD_SCALE),
        step_pairs=pairs,
        epochs=args.num_train_epochs,
        steps=args.max_train_steps,
    )


def describe(setup: Setup, rows: int, learning: int) -> str:
    """What is about to happen, in a line."""
    side, rate = setup.view.resolution, setup.settings.rate
    return (
        f"training {learning:,} weights on {rows:,} pairs of {side}x{side}: {rate.total:,} steps of "
        f"{setup.step_pairs}, learning rate {rate.peak:g} ({rate.schedule})"
    )


def _settings(args: argparse.Namespace, pairs: int) -> TrainingSettings:
    if args.max_train_steps is not None and args.max_train_steps < 1:
        raise ValueError(f"--max-train-steps {args.max_train_steps}: give 1 or more")
    rate = LearningRate(
        args.learning_rate * (pairs if args.scale_lr else 1), args.lr_scheduler, args.lr_warmup_steps,
        args.lr_num_cycles, args.lr_power, args.max_train_steps or 1,
    )  # fmt: skip
    optimization = Optimization(
        "adamw8bit" if args.use_8bit_adam else "adamw", (args.adam_beta1, args.adam_beta2),
        args.adam_weight_decay, args.adam_epsilon, args.max_grad_norm, args.set_grads_to_none, args.ema_decay,
    )  # fmt: skip
    return TrainingSettings(rate, Loss(args.snr_gamma, args.noise_offset, args.seed), optimization)


def plan_of(args: argparse.Namespace, setup: Setup) -> Plan:
    """What of a run decides its memory."""
    offload = args.strategy.startswith("deepspeed") and args.strategy.endswith("offload")
    return Plan(
        batch=args.batch,
        resolution=setup.view.resolution,
        precision=args.mixed_precision,
        checkpointing=args.gradient_checkpointing,
        optimizer="host" if offload else setup.settings.optimization.name,
        accumulate=args.accumulate,
        grads_to_none=args.set_grads_to_none,
        averaged=bool(args.ema_decay),
        cached=args.cache_latents is not None,
        sd_locked=not args.unlock_sd,
    )
