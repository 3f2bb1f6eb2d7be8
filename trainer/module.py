"""Training a control branch with Lightning: the module, its checkpoints, and the trainer.

`trainer.fit(ControlTraining(model), loader)` works with any loader of published samples. With a `DrawLoader`
every sample carries its number in the run's stream, and all that is random about it follows from that: a
resumed run and one on several processes see the same samples under the same noise.

A checkpoint holds only what learns, under the published names. Lightning's own counters of batches are not
taken back from it: a resumed run begins a new walk through the stream, at the draw where the old one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from lightning_fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cldm.cldm import ControlLDM
from trainer.checkpointing import STATE, CheckpointFolder
from trainer.data.dataset import DrawLoader
from trainer.ema import MovingAverage
from trainer.learning_rate import learning_rate_factor
from trainer.losses import control_loss, draw_noise, latent_moments
from trainer.optim import make_optimizer
from trainer.settings import TrainingSettings
from trainer.stop_request import StopRequest

INNER = "model."  # the module's own level above the published names
BRANCH = "control_model."
HALF_SCALED = "16-mixed"  # the precision whose gradients may overflow now and then: its scaler skips the step
MANY_DRAWS = 2**62


class ControlTraining(pl.LightningModule):
    """A ControlLDM that learns: its branch, and the U-Net's output half where it is not `sd_locked`.

    loader: the run's stream, unless `fit` is given another. parts: brings autoencoder and text encoder back
    for as long as it is entered, where they were put away.
    """

    strict_loading = False  # a checkpoint holds only what learns

    def __init__(
        self, model: ControlLDM, settings: TrainingSettings | None = None, loader: DrawLoader | None = None,
        parts: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = settings or TrainingSettings()
        self.rate = self.settings.rate
        if self.rate.peak is None:
            self.rate = replace(self.rate, peak=model.learning_rate)
        self.model, self.parts = model.eval().requires_grad_(False), parts
        for parameter in model.trainable_parameters():
            parameter.requires_grad_(True)
        model.control_model.train()
        self.loader, self.draws_done = loader, 0
        self.average: MovingAverage | None = None
        self.stop, self.stopping = StopRequest(), False
        self._failed = False
        self._random: dict[str, Any] = {}

    def learning(self) -> dict[str, nn.Parameter]:
        """What learns, by its published name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def training_step(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The loss of one batch."""
        mean, std, text = latent_moments(self.model, batch)
        draws = batch["draw"] if "draw" in batch else torch.randint(MANY_DRAWS, (len(mean),))
        noise = draw_noise(draws.tolist(), mean.shape[1:], self.settings.loss, self.model.num_timesteps)
        x0 = self.model.scale_factor * (mean + std * noise.posterior.to(mean))
        hint = rearrange(batch[self.model.control_key], "b H W c -> b c H W").to(mean).contiguous()
        cond = {"c_crossattn": [text], "c_concat": [hint]}
        loss = control_loss(self.model, x0, cond, noise, self.settings.loss.snr_gamma)
        self._failed |= not bool(torch.isfinite(loss))
        self.log("loss", loss.detach(), batch_size=len(mean))
        self.draws_done += len(mean) * self.trainer.world_size
        return loss

    def log_images(self, batch: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        """Those of the model; of cached latents, what they decode to stands for the picture."""
        if "mean" in batch:
            pixels = self.model.decode_first_stage(self.model.scale_factor * batch["mean"].float())
            batch = {**batch, self.model.first_stage_key: rearrange(pixels, "b c H W -> b H W c")}
        return self.model.log_images(batch, **options)

    def train_dataloader(self) -> DataLoader:
        """The batches of this process; asked for once a run, after a checkpoint was read."""
        assert self.loader is not None, "give fit a loader, or this module"
        return self.loader.of(self.draws_done, self.trainer.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over what learns, and its learning rate."""
        offloads = getattr(self.trainer.strategy, "config", None) is not None
        optimizer = make_optimizer(
            self.learning().values(), self.rate.peak, self.settings.optimization, offload=offloads
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate_factor(s, self.rate))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Begin the average, from what a checkpoint held if there was one."""
        if self.settings.optimization.ema_decay and self.average is None:
            self.average = MovingAverage(self.learning(), self.settings.optimization.ema_decay)

    def on_train_start(self) -> None:
        """Take torch's random state back, after all else that may have drawn from it."""
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            if len(self._random["cards"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._random["cards"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip, and let all processes agree whether something is wrong or somebody wants to stop.

        Raises FloatingPointError, in every process, before a loss that is not finite reaches the weights.
        """
        norm = self._clip()
        if norm is not None and self.trainer.precision != HALF_SCALED:
            self._failed |= not bool(torch.isfinite(norm))
        said = torch.tensor([float(self._failed), float(bool(self.stop.asked))], device=self.device)
        failed, stopping = self.trainer.strategy.reduce(said, reduce_op="sum").tolist()
        self._failed, self.stopping = False, bool(stopping)
        if failed:
            raise FloatingPointError(f"the loss or its gradient at step {self.global_step} is not finite")

    def _clip(self) -> Tensor | None:
        limit = self.settings.optimization.clip or float("inf")
        wrapped = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP: each process sees only a part of the gradients
            return wrapped.clip_grad_norm_(limit)
        if self.trainer.gradient_clip_val is not None:  # DeepSpeed clips by itself
            return None
        return nn.utils.clip_grad_norm_(self.learning().values(), limit)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, then the average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.learning())

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Free the gradients, or fill them with zeros."""
        optimizer.zero_grad(set_to_none=self.settings.optimization.grads_to_none)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what learns; add the average, the place in the data and the random state."""
        named = {name.removeprefix(INNER): value for name, value in checkpoint["state_dict"].items()}
        learns = self.learning()
        checkpoint["state_dict"] = {
            name: value for name, value in named.items() if name in learns or name.startswith(BRANCH)
        }
        checkpoint["draws_done"] = self.draws_done
        checkpoint["random"] = {"cpu": torch.get_rng_state(), "cards": torch.cuda.get_rng_state_all()}
        if self.average is not None:
            checkpoint["average"] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take all that back."""
        stored = checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"{INNER}{name}": value for name, value in stored.items()}
        self.draws_done, self._random = checkpoint["draws_done"], checkpoint["random"]
        decay = self.settings.optimization.ema_decay
        if decay:
            self.average = MovingAverage(self.learning(), decay)
            if "average" in checkpoint:
                self.average.load_state_dict(checkpoint["average"])
        _forget_batches(checkpoint, self.trainer.fit_loop.state_dict())


def _forget_batches(checkpoint: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Keep Lightning's counts of optimizer steps and let its counts of batches begin anew."""
    kept = ("optim_progress", "scheduler_progress", "epoch_loop.state_dict")
    old = checkpoint["loops"]["fit_loop"]
    checkpoint["loops"]["fit_loop"] = fresh | {name: old[name] for name in old if name.endswith(kept)}


class Checkpoints(pl.Callback):
    """Saves every so many steps, at the end, and when somebody wants to stop; listens for that wish.

    size: bytes of one checkpoint, which must be free before it is begun.
    """

    def __init__(self, folder: CheckpointFolder, every: int, size: int) -> None:
        self.folder, self.every, self.size = folder, every, size
        self.saved: Path | None = None
        self._last = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: ControlTraining) -> None:
        """Listen for Ctrl-C and SIGTERM; here, since Lightning has set its own handlers by now."""
        self._last = trainer.global_step
        pl_module.stop.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: ControlTraining, *_: Any) -> None:
        """Save when it is time."""
        step = trainer.global_step
        if step == self._last:  # between the parts of an accumulated step
            return
        self._last = step
        if step % self.every == 0 or pl_module.stopping or step >= trainer.max_steps:
            self.save(trainer)
        if pl_module.stopping:
            trainer.should_stop = True

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, whole or not at all. Raises OSError in every process when it does not fit."""
        step, first = trainer.global_step, trainer.is_global_zero
        trouble = None
        if first:
            try:
                self.folder.check_space(self.size)
                self.folder.begin(step)
            except OSError as error:
                trouble = str(error)
        if trouble := trainer.strategy.broadcast(trouble):
            raise OSError(trouble)
        try:
            trainer.save_checkpoint(self.folder.out / f"checkpoint-{step}.partial" / STATE)
        except (OSError, RuntimeError) as error:  # torch calls a full disk a RuntimeError
            self.folder.drop(step)
            raise OSError(f"checkpoint-{step} was not written, the one before is kept: {error}") from error
        if first:
            self.saved = self.folder.finish(step)
        trainer.strategy.barrier("checkpoint")

    def on_train_end(self, trainer: pl.Trainer, pl_module: ControlTraining) -> None:
        """Stop listening."""
        pl_module.stop.__exit__(None, None, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: ControlTraining, exception: BaseException) -> None:
        """Stop listening."""
        self.on_train_end(trainer, pl_module)


class PlainFiles(TorchCheckpointIO):
    """Checkpoints straight to disk: Lightning's own way holds each a second time in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write into a folder that is there."""
        torch.save(checkpoint, path)
