"""What a run shows of itself: samples of fixed prompts, a bar, and numbers for TensorBoard and its like."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from cldm.cldm import ControlLDM
from cldm.log_images import SampleSettings, sample_images
from cldm.logger import GAP, preserve_rng, write_grid
from common.memory import peak_memory
from ldm.image import image_to_hint, read_image
from trainer.data.dataset import to_square

LATENT_STEP = 8  # pixels of the image for one of the latent
BYTES_PER_GB = 1e9


def read_validation(
    prompts: Sequence[str], images: Sequence[Path], resolution: int
) -> list[tuple[str, np.ndarray]]:
    """Prompts with their control images, as diffusers pairs them: one of either serves all.

    Raises ValueError for numbers that do not fit, and as `read_image`.
    """
    if len(prompts) != len(images) and 1 not in (len(prompts), len(images)):
        raise ValueError(
            f"{len(prompts)} validation prompts for {len(images)} validation images: give as many of both, "
            "or one of either"
        )
    hints = [to_square(read_image(path)[:, :, :3], resolution) for path in images]
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
                grid = self.grid(pl_module.model)
            write_grid(trainer, "validation", f"grid_gs-{step:06}.png", grid)
        trainer.strategy.barrier("validation")

    def grid(self, model: ControlLDM) -> Tensor:
        """A row for each prompt, its control image and then the samples: [3, H, W] in [-1, 1]."""
        rows = []
        for number, (prompt, hint) in enumerate(self.pairs):
            control = image_to_hint(hint, self.count).to(model.device)
            cond, uncond = (
                {"c_concat": [control], "c_crossattn": [model.get_learned_conditioning([text] * self.count)]}
                for text in (prompt, "")
            )
            channels, (height, width) = model.model.diffusion_model.config.in_channels, control.shape[-2:]
            shape = (self.count, channels, height // LATENT_STEP, width // LATENT_STEP)
            torch.manual_seed(self.seed + number)
            samples = sample_images(model, shape, cond, uncond, self.sampling)
            images = torch.cat([control[:1] * 2 - 1, samples]).float().cpu()
            images = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
            rows.append(rearrange(images, "k c H W -> c H (k W)"))
        return torch.cat(rows, dim=1).clamp(-1, 1)


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
        if step == self._last:
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
        self.on_train_end(trainer, pl_module)
