"""Grids of images that a training run draws of its batches; `ImageLogger` is the published callback.

Images are drawn with random numbers of their own: a run gives the same weights with and without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor

from ldm.image import model_to_images, write_png

COLUMNS = ("conditioning", "control", "reconstruction")  # then the samples, as `log_images` names them
GAP = 2  # white pixels between the images of a grid


class ImageLogger(pl.Callback):
    """Grids [prompt, control, reconstruction, samples] in image_log/train (published signature).

    batch_frequency: steps between grids, powers of two before it too with `increase_log_steps`. rescale:
    images lie in [-1, 1], not in [0, 1]. log_on_batch_idx: count batches, not optimizer steps.
    log_images_kwargs: for the model's `log_images`, such as ddim_steps.
    """

    def __init__(  # noqa: PLR0913 - published signature
        self, batch_frequency: int = 2000, max_images: int = 4, clamp: bool = True,
        increase_log_steps: bool = True, rescale: bool = True, disabled: bool = False,
        log_on_batch_idx: bool = False, log_first_step: bool = False,
        log_images_kwargs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.batch_frequency, self.max_images = batch_frequency, max_images
        self.clamp, self.rescale, self.disabled = clamp, rescale, disabled
        self.log_on_batch_idx, self.log_first_step = log_on_batch_idx, log_first_step
        self.log_images_kwargs = dict(log_images_kwargs or {})
        doublings = range(batch_frequency.bit_length()) if increase_log_steps else ()
        self.early = {2**power for power in doublings if 2**power < batch_frequency}
        self._last = 0  # the step of the last batch: an accumulated step has several

    def check_frequency(self, count: int) -> bool:
        """Whether a grid is due after `count` steps or batches (published)."""
        if count <= 0:
            return self.log_first_step and count == 0
        return count % self.batch_frequency == 0 or count in self.early

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run does not draw its last grid again."""
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a grid when it is due; in one process, while the others wait at the next step."""
        step = trainer.global_step
        stepped, self._last = step != self._last, step
        due = self.check_frequency(batch_idx if self.log_on_batch_idx else step)
        first = self.log_first_step and step == 1
        if self.disabled or not (stepped or self.log_on_batch_idx) or not (due or first):
            return
        if trainer.is_global_zero:
            self.log_img(trainer, pl_module, batch, batch_idx)
        trainer.strategy.barrier("images")

    def log_img(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int, split: str = "train"
    ) -> Path:
        """Write the grid of a batch into image_log/`split`; returns its path."""
        with preserve_rng(module):
            images = module.log_images(batch, N=self.max_images, **self.log_images_kwargs)
        names = [*COLUMNS, *(name for name in images if name not in COLUMNS)]
        columns = [images[name].detach().float().cpu() for name in names]  # [n, 3, H, W] each
        if not self.rescale:
            columns = [column * 2 - 1 for column in columns]
        step, epoch = trainer.global_step, trainer.current_epoch
        name = f"grid_gs-{step:06}_e-{epoch:06}_b-{batch_idx:06}.png"
        return write_grid(trainer, split, name, image_grid(columns, clamp=self.clamp))


@contextmanager
def preserve_rng(module: Any) -> Iterator[None]:
    """Inside: autoencoder and text encoder are there, gradients are not, and random numbers are borrowed."""
    parts = getattr(module, "parts", nullcontext)
    gpus = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.no_grad():
        torch.manual_seed(0)  # the same noise for every grid: only weights differ
        with parts():
            yield


def image_grid(columns: list[Tensor], *, clamp: bool = True) -> Tensor:
    """Images [n, 3, H, W] of each column side by side: [3, H, W], one row an image, a gap between them."""
    padded = [torch.nn.functional.pad(column, (0, GAP, 0, GAP), value=1.0) for column in columns]
    grid = rearrange(torch.stack(padded), "k n c H W -> c (n H) (k W)")[:, :-GAP, :-GAP]
    return grid.clamp(-1, 1) if clamp else grid


def write_grid(trainer: pl.Trainer, split: str, name: str, grid: Tensor) -> Path:
    """Write a grid [3, H, W] in [-1, 1] into image_log/`split`, and hand it to loggers that take images."""
    (image,) = model_to_images(grid[None])
    path = write_png(Path(trainer.default_root_dir) / "image_log" / split / name, image)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(split, [image], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(split, image, trainer.global_step, dataformats="HWC")
    return path
