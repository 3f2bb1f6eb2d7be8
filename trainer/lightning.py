"""Lightning's objects for a plan: its trainer, what it shows of itself, and how it spreads over devices."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from einops import rearrange
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor
from tqdm import tqdm

from cldm.cldm import ControlLDM
from cldm.log_images import SampleSettings, sample_images
from cldm.logger import GAP, ImageLogger, preserve_rng, write_grid
from common.memory import peak_memory
from ldm.image import image_to_hint, read_image
from trainer.checkpointing import Checkpoints, DirectCheckpointIO
from trainer.data.dataset import to_square
from trainer.plan import PIXELS_PER_LATENT, RunPlan

BYTES_PER_GB = 1e9
PRECISIONS = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
# Of Lightning: frozen parts are in eval mode on purpose, and its use of torch is not ours.
NOT_FOR_USERS = r".*module\(s\) in eval mode|.*LeafSpec"


def make_trainer(plan: RunPlan, device: torch.device, checkpoints: Checkpoints) -> pl.Trainer:
    """The trainer of a plan. Raises ValueError for what Lightning does not know or has no package for."""
    settings = plan.settings
    memory, machines, out = settings.memory, settings.machines, settings.output.folder
    torch.backends.cuda.matmul.allow_tf32 = memory.allow_tf32
    if memory.lean_attention and device.type == "cuda":
        torch.backends.cuda.enable_math_sdp(False)  # the only one that holds an [n, n] matrix
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
        max_epochs=-1,  # max_steps alone ends a run: its stream has no end
        log_every_n_steps=1,  # a loss for every step, as runs are compared by
        default_root_dir=out,
        logger=_loggers(plan),
        callbacks=[*_callbacks(plan), checkpoints],
        plugins=[] if machines.is_deepspeed else [DirectCheckpointIO()],  # DeepSpeed's is a folder
        enable_checkpointing=False,  # `Checkpoints` writes them
        enable_progress_bar=False,  # `ThroughputLogger` draws one
        enable_model_summary=False,
        use_distributed_sampler=False,  # `StreamLoader` divides the stream itself
    )


def _loggers(plan: RunPlan) -> list[Any]:
    """The loggers of --report-to; of `all`, those whose packages are there."""
    reports = plan.settings.reports
    folder, wanted = plan.settings.output.folder / reports.logging_dir, reports.report_to
    make = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version=""),
        "csv": lambda: CSVLogger(folder, name="csv"),
        "wandb": lambda: WandbLogger(project=reports.tracker_project_name, save_dir=folder),
    }
    there = [name for name in make if name == "csv" or find_spec(name)]
    return [make[name]() for name in make if name in (there if "all" in wanted else wanted)]


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
        name = "ddp"  # Lightning's `auto` would look for a launcher of its own
    if name == "auto":
        return name
    if name not in StrategyRegistry:
        ours = sorted(one for one in StrategyRegistry if one.startswith(("ddp", "fsdp", "deepspeed")))
        raise ValueError(f"unknown --strategy {name!r}: use {', '.join(ours)}")
    if name.startswith("fsdp") and plan.settings.optimization.ema_decay:
        raise ValueError("--ema-decay needs whole weights in every process: leave it out, or use ddp")
    if name == "ddp":
        # Of a branch that acts on the middle alone, the zero convolutions of the skips get no gradient.
        return DDPStrategy(find_unused_parameters=plan.settings.model.only_mid_control)
    return name


def read_validation(
    prompts: Sequence[str], images: Sequence[Path], resolution: int
) -> list[tuple[str, np.ndarray]]:
    """Prompts with their control images, as diffusers pairs them: one of either serves all.

    Raises ValueError for numbers that do not fit, and as `read_image`.
    """
    if len(prompts) != len(images) and 1 not in (len(prompts), len(images)):
        given = f"{len(prompts)} validation prompts for {len(images)} validation images"
        raise ValueError(f"{given}: give as many of both, or one of either")
    hints = [to_square(read_image(path)[:, :, :3], resolution) for path in images]  # alpha plays no part
    return list(islice(zip(cycle(prompts), cycle(hints)), max(len(prompts), len(hints))))


class ValidationImages(pl.Callback):
    """Samples of fixed prompts and control images in image_log/validation, `every` so many steps.

    pairs: prompts with their hints, uint8 [H W 3]. count: samples of each.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, np.ndarray]], every: int, count: int = 4,
        sampling: SampleSettings | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.pairs, self.every, self.count, self.seed = pairs, every, count, seed
        self.sampling = sampling or SampleSettings(steps=20)
        self._last = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Draw when it is time, once a step."""
        step = trainer.global_step
        if step == self._last or step % self.every:
            return
        self._last = step
        if trainer.is_global_zero:
            with preserve_rng(pl_module):
                grid = self._grid(pl_module.model)
            write_grid(trainer, "validation", f"grid_gs-{step:06}.png", grid)
        trainer.strategy.barrier("validation")  # others must not run into a collective meanwhile

    def _grid(self, model: ControlLDM) -> Tensor:
        """A row for each prompt, its control image and then the samples: [3, H, W] in [-1, 1]."""
        rows = []
        for number, (prompt, hint) in enumerate(self.pairs):
            control = image_to_hint(hint, self.count).to(model.device)
            cond, uncond = (
                {"c_concat": [control], "c_crossattn": [model.get_learned_conditioning([text] * self.count)]}
                for text in (prompt, "")  # the second guides away from it
            )
            channels, (height, width) = model.model.diffusion_model.config.in_channels, control.shape[-2:]
            shape = (self.count, channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
            torch.manual_seed(self.seed + number)  # the same noise each time: what changes is the branch
            samples = sample_images(model, shape, cond, uncond, self.sampling)
            images = torch.cat([control[:1] * 2 - 1, samples]).float().cpu()  # [1 + count, 3, H, W]
            images = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
            rows.append(rearrange(images, "k c H W -> c H (k W)"))
        return torch.cat(rows, dim=1).clamp(-1, 1)  # [3, rows * H, columns * W]


class ThroughputLogger(pl.Callback):
    """A bar on stderr, and for the loggers: learning rate, images a second, peak memory.

    Lightning's `LearningRateMonitor` and `ThroughputMonitor` would each write rows of their own, not in the
    loss's; the latter waits for the GPU after every batch, and neither knows memory or draws a bar.
    """

    def __init__(self, pairs: int) -> None:
        self.pairs, self._bar, self._since, self._last = pairs, None, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar at once, from the step where the run goes on."""
        self._since, self._last = time.perf_counter(), trainer.global_step
        self._bar = tqdm(
            total=trainer.max_steps, initial=self._last, unit="step", desc="training", file=sys.stderr,
            dynamic_ncols=True, disable=not trainer.is_global_zero,
        )  # fmt: skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """One step more."""
        step = trainer.global_step
        if step == self._last:  # between the parts of an accumulated step
            return
        now, (rate,) = time.perf_counter(), trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
        peak = peak_memory()
        values = {
            "lr": rate,
            "images_per_second": self.pairs * (step - self._last) / (now - self._since),
            "peak_memory_gb": (peak["gpu"] or peak["ram"] or 0) / BYTES_PER_GB,
        }
        self._since, self._last = now, step
        pl_module.log_dict(values)
        self._bar.set_postfix(loss=f"{float(outputs['loss']):.4f}", lr=f"{rate:.1e}", refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, error: BaseException) -> None:
        """Leave the bar as it is."""
        self.on_train_end(trainer, pl_module)  # else the sentence would stand behind the bar
