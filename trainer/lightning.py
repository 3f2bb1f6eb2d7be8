"""Lightning's objects for a plan: where a run reports to, how it spreads over devices, and its trainer."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry

from cldm.log_images import SampleSettings
from cldm.logger import ImageLogger
from trainer.callbacks import ThroughputLogger, ValidationImages, read_validation
from trainer.checkpointing import Checkpoints, DirectCheckpointIO
from trainer.plan import RunPlan

ALL_REPORTS = ("tensorboard", "csv", "wandb")
PRECISIONS = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
# Of Lightning: frozen parts are in eval mode on purpose, and its use of torch is not ours.
NOT_FOR_USERS = r".*module\(s\) in eval mode|.*LeafSpec"


def make_trainer(plan: RunPlan, device: torch.device, checkpoints: Checkpoints) -> pl.Trainer:
    """The trainer of a plan. Raises ValueError for what Lightning does not know or has no package for."""
    settings = plan.settings
    memory, machines, out = settings.memory, settings.machines, settings.output.folder
    torch.backends.cuda.matmul.allow_tf32 = memory.allow_tf32
    if memory.lean_attention and device.type == "cuda":
        torch.backends.cuda.enable_math_sdp(False)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=NOT_FOR_USERS)
    one_named = device.index is not None and machines.devices == 1
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index] if one_named else machines.devices,
        num_nodes=machines.num_nodes,
        strategy=_strategy(plan),
        precision=PRECISIONS[memory.mixed_precision],
        accumulate_grad_batches=settings.length.accumulate,
        gradient_clip_val=settings.optimization.max_grad_norm if machines.is_deepspeed else None,
        max_steps=settings.rate.total,
        max_epochs=-1,
        log_every_n_steps=1,
        default_root_dir=out,
        logger=_loggers(plan),
        callbacks=[*_callbacks(plan), checkpoints],
        plugins=[] if machines.is_deepspeed else [DirectCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _loggers(plan: RunPlan) -> list[Any]:
    """The loggers of --report-to; of `all`, those whose packages are there."""
    reports = plan.settings.reports
    wanted = set(reports.report_to) - {"none"}
    if "all" in wanted:
        wanted = {name for name in ALL_REPORTS if name == "csv" or find_spec(name)}
    folder = plan.settings.output.folder / reports.logging_dir
    made: list[Any] = []
    if "tensorboard" in wanted:
        made.append(TensorBoardLogger(folder, name="", version=""))
    if "csv" in wanted:
        made.append(CSVLogger(folder, name="csv"))
    if "wandb" in wanted:
        made.append(WandbLogger(project=reports.tracker_project_name, save_dir=folder))
    return made


def _callbacks(plan: RunPlan) -> list[pl.Callback]:
    """Bar, numbers and images, as the flags want them."""
    reports = plan.settings.reports
    made: list[pl.Callback] = [ThroughputLogger(plan.pairs)]
    if reports.image_log_steps:
        options = {"ddim_steps": reports.sample_steps, "unconditional_guidance_scale": plan.scale}
        made.append(ImageLogger(reports.image_log_steps, increase_log_steps=False, log_images_kwargs=options))
    if bool(reports.validation_prompt) != bool(reports.validation_image):
        raise ValueError("--validation-prompt and --validation-image go together: give both")
    if reports.validation_prompt:
        side, seed = plan.settings.transform.resolution, plan.settings.loss.seed
        pairs = read_validation(reports.validation_prompt, reports.validation_image, side)
        sampling = SampleSettings(reports.sample_steps, scale=plan.scale)
        every, count = reports.validation_steps, reports.num_validation_images
        made.append(ValidationImages(pairs, every, count, sampling, seed))
    return made


def _strategy(plan: RunPlan) -> Any:
    """Lightning's strategy for the flag; plain data parallelism where there are several processes."""
    machines = plan.settings.machines
    name = machines.strategy
    if name == "auto" and machines.devices * machines.num_nodes > 1:
        name = "ddp"
    if name == "auto":
        return name
    if name not in StrategyRegistry:
        ours = sorted(one for one in StrategyRegistry if one.startswith(("ddp", "fsdp", "deepspeed")))
        raise ValueError(f"unknown --strategy {name!r}: use {', '.join(ours)}")
    if machines.is_deepspeed and find_spec("deepspeed") is None:
        raise ValueError(f"--strategy {name} needs the package deepspeed: pip install deepspeed, or use ddp")
    if name.startswith("fsdp") and plan.settings.optimization.ema_decay:
        raise ValueError(
            "--ema-decay needs whole weights in every process: use ddp, or leave it out with fsdp"
        )
    if name == "ddp":
        # Of a branch that acts on the middle alone, the zero convolutions of the skips get no gradient.
        return DDPStrategy(find_unused_parameters=plan.settings.model.only_mid_control)
    return name
