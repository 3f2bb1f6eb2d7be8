"""What a run shows while it goes on: grids of pictures, a bar, and numbers for TensorBoard and its like.

Pictures are drawn with random numbers of their own: a run gives the same weights with and without them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor

from common.memory import peak_memory
from ldm.image import model_to_images, write_png
from trainer.callbacks import Validation, validation_grid

COLUMNS = ("conditioning", "control", "reconstruction")  # then the samples, as `log_images` names them
GAP = 2  # white pixels between the pictures of a grid
BYTES_PER_GB = 1e9


class ImageLogger(pl.Callback):
    """Grids [prompt, control, reconstruction, samples] in image_log/train (published signature).

    batch_frequency: steps between grids, powers of two before it too with `increase_log_steps`. rescale:
    pictures lie in [-1, 1], not in [0, 1]. log_on_batch_idx: count batches, not optimizer steps.
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
        self._last = 0

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
        trainer.strategy.barrier("pictures")

    def log_img(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        split: str = "train",
    ) -> Path:
        """Write the grid of a batch into image_log/`split`; returns its path."""
        with undisturbed(module):
            pictures = module.log_images(batch, N=self.max_images, **self.log_images_kwargs)
        names = [*COLUMNS, *(name for name in pictures if name not in COLUMNS)]
        columns = [pictures[name].detach().float().cpu() for name in names]
        if not self.rescale:
            columns = [column * 2 - 1 for column in columns]
        pixels = grid_of(columns, clamp=self.clamp)
        step, epoch = trainer.global_step, trainer.current_epoch
        name = f"grid_gs-{step:06}_e-{epoch:06}_b-{batch_idx:06}.png"
        path = Path(trainer.default_root_dir) / "image_log" / split / name
        return show(trainer, split, pixels, path)


class ValidationPictures(pl.Callback):
    """Samples of fixed prompts and control pictures in image_log/validation, every so many steps."""

    def __init__(self, validation: Validation, every: int) -> None:
        self.validation, self.every, self._last = validation, every, -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Draw when it is time, once a step."""
        step = trainer.global_step
        if step == self._last or step % self.every:
            return
        self._last = step
        if trainer.is_global_zero:
            with undisturbed(pl_module):
                pixels = validation_grid(pl_module.model, self.validation)
            path = Path(trainer.default_root_dir) / "image_log/validation" / f"grid_gs-{step:06}.png"
            show(trainer, "validation", pixels, path)
        trainer.strategy.barrier("validation")


class Meter(pl.Callback):
    """A bar on stderr, and for the loggers: learning rate, pictures a second, peak memory."""

    def __init__(self, pictures_per_step: int) -> None:
        self.pictures, self._bar, self._since, self._last = pictures_per_step, None, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar at once, from the step where the run goes on."""
        from tqdm import tqdm

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
            "images_per_second": self.pictures * (step - self._last) / (now - self._since),
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


@contextmanager
def undisturbed(module: Any) -> Iterator[None]:
    """Inside: autoencoder and text encoder are there, gradients are not, and random numbers are borrowed."""
    parts = getattr(module, "parts", None)
    cards = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(cards), torch.no_grad():
        torch.manual_seed(0)
        if parts is None:
            yield
            return
        with parts():
            yield


def grid_of(columns: list[Tensor], *, clamp: bool = True) -> Tensor:
    """Pictures [n, 3, H, W] of each column side by side: [3, H, W], one row a picture, a gap between them."""
    padded = [torch.nn.functional.pad(column, (0, GAP, 0, GAP), value=1.0) for column in columns]
    grid = rearrange(torch.stack(padded), "k n c H W -> c (n H) (k W)")[:, :-GAP, :-GAP]
    return grid.clamp(-1, 1) if clamp else grid


def show(trainer: pl.Trainer, name: str, grid: Tensor, path: Path) -> Path:
    """Write a grid [3, H, W] in [-1, 1] to `path`, and hand it to loggers that take pictures."""
    (image,) = model_to_images(grid[None])
    write_png(path, image)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [image], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, image, trainer.global_step, dataformats="HWC")
    return path
