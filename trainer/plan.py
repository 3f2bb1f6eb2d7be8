"""Flags and yaml together: the frozen plan that a run is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from cldm.model import with_branch
from ldm.config import read_config
from trainer.flags import ALL_DEVICES, RunSettings

TINY_CONFIG = Path(__file__).parents[1] / "models/tiny.yaml"
PIXELS_PER_LATENT = 8  # three halvings of the autoencoder
SD_SIDE, SD_SCALE = 64, 9.0  # latent side and guidance where the yaml names none
CONTROL_FILE = "control"  # in the name of the tiny model's branch, which a run begins anew


@dataclass(frozen=True)
class RunPlan:
    """A run before anything large is read.

    scale: of guidance in images. pairs: of one step, on all devices together.
    """

    settings: RunSettings  # complete: resolution, devices and peak rate are filled in
    config: DictConfig  # merged, with the branch that the flags ask for
    weights: tuple[Path, ...]  # overlaid in order, the last wins
    scale: float
    pairs: int

    def for_rows(self, count: int) -> RunPlan:
        """The same with the number of steps known, for `count` pairs."""
        length = self.settings.length
        total = length.max_train_steps or math.ceil(count / self.pairs) * length.epochs
        rate = replace(self.settings.rate, total=total)
        return replace(self, settings=replace(self.settings, rate=rate))


def make_plan(settings: RunSettings) -> RunPlan:
    """The plan of a command line. Raises ValueError or FileNotFoundError for what cannot be."""
    path = settings.model.config or TINY_CONFIG
    config = with_branch(path, settings.model.branch) if settings.model.branch else read_config(path)
    defaults = config.get("defaults") or {}
    side = config.model.params.get("image_size", SD_SIDE) * PIXELS_PER_LATENT
    rate, machines, length = settings.rate, settings.machines, settings.length
    if machines.devices == ALL_DEVICES:
        machines = replace(machines, devices=max(1, torch.cuda.device_count()))
    pairs = length.batch * length.accumulate * machines.devices * machines.num_nodes
    if rate.scale_lr:
        rate = replace(rate, peak=rate.peak * pairs)  # diffusers' rule: linear in the batch
    resolution = settings.transform.resolution or defaults.get("resolution", side)
    transform = replace(settings.transform, resolution=resolution)
    return RunPlan(
        settings=replace(settings, machines=machines, rate=rate, transform=transform),
        config=config,
        weights=_weights(settings, path, config),
        scale=settings.reports.guidance_scale or defaults.get("scale", SD_SCALE),
        pairs=pairs,
    )


def _weights(settings: RunSettings, path: Path, config: DictConfig) -> tuple[Path, ...]:
    """The base's files, then the branch's, in the order in which they are overlaid."""
    branch = settings.model.controlnet
    base = settings.model.weights or tuple(path.parent / name for name in config.get("weights") or ())
    if settings.model.weights is None and branch is None:
        base = tuple(one for one in base if CONTROL_FILE not in one.stem)  # a run begins a new branch
    if not base:
        raise ValueError(f"{path} names no weights: give the base model by --resume-path")
    return (*base, branch) if branch else base
