"""Training a control branch with Lightning: the module, and how it is asked to stop.

`trainer.fit(ControlTraining(model), loader)` works with any loader of published samples. With a
`StreamLoader` every sample carries its number in the run's stream, and all that is random about it follows
from that: a resumed run and one on several processes see the same samples under the same noise.

A checkpoint holds only what learns, under the published names. Lightning's own counters of batches are not
taken back from it: a resumed run goes through the stream anew, from the sample where the old one stopped.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cldm.cldm import ControlLDM
from common.shell import Stopped
from trainer.data.dataset import StreamLoader
from trainer.losses import control_loss, draw_noise, latent_moments
from trainer.optim import MovingAverage, make_optimizer, make_schedule
from trainer.settings import LearningRate, TrainingSettings

INNER = "model."  # the module's own level above the published names
BRANCH = "control_model."
HALF_SCALED = "16-mixed"  # the precision whose gradients may overflow now and then: its scaler skips the step
MANY_NUMBERS = 2**62  # below what a signed number of 64 bits holds
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # schedulers send the second before they kill


class StopRequest:
    """Ctrl-C and SIGTERM as a wish: the run ends after the step it is in, and saves first.

    `asked` is the signal that came, 0 for none. A second one ends at once: as `Stopped`, as Lightning turns
    a KeyboardInterrupt into exit code 1.
    """

    asked = 0

    def listen(self) -> None:
        """Put our handlers in the place of those that are there; Lightning's trainer puts these back."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Stopped("stopped at once; the last checkpoint is kept")
        self.asked = number
        sys.stderr.write("\nstopping after this step, the state is saved first; once more to stop at once\n")


class ControlTraining(pl.LightningModule):
    """A ControlLDM that learns: its branch, and the U-Net's output half where it is not `sd_locked`.

    settings: by default those of a run at the model's own `learning_rate`. loader: the run's stream, unless
    `fit` is given another. parts: brings autoencoder and text encoder back for as long as it is entered,
    where they were offloaded.
    """

    strict_loading = False  # a checkpoint holds only what learns

    def __init__(
        self, model: ControlLDM, settings: TrainingSettings | None = None, loader: StreamLoader | None = None,
        parts: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = settings or TrainingSettings(LearningRate(model.learning_rate))
        self.model, self.parts = model.eval().requires_grad_(False), parts
        for parameter in model.trainable_parameters():
            parameter.requires_grad_(True)
        model.control_model.train()  # dropout there; the frozen rest stays in eval mode
        self.loader, self.samples_done = loader, 0
        self.average: MovingAverage | None = None
        self.stop, self.stopping = StopRequest(), False
        self._failed = False  # of this process; all agree in `on_before_optimizer_step`
        self._random: dict[str, Any] = {}  # of a checkpoint, until training starts

    def learning(self) -> dict[str, nn.Parameter]:
        """What learns, by its published name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def training_step(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The loss of one batch."""
        mean, std, text = latent_moments(self.model, batch)  # [b, c, h, w] twice, [b, n, d]
        numbers = batch["number"] if "number" in batch else torch.randint(MANY_NUMBERS, (len(mean),))
        noise = draw_noise(numbers.tolist(), mean.shape[1:], self.settings.loss, self.model.num_timesteps)
        x0 = self.model.scale_factor * (mean + std * noise.posterior.to(mean))
        hint = rearrange(batch[self.model.control_key], "b H W c -> b c H W").to(mean).contiguous()
        cond = {"c_crossattn": [text], "c_concat": [hint]}
        loss = control_loss(self.model, x0, cond, noise, self.settings.loss.snr_gamma)
        self._failed |= not bool(torch.isfinite(loss))  # raised later, by all processes at once
        self.log("loss", loss.detach(), batch_size=len(mean))
        self.samples_done += len(mean) * self.trainer.world_size  # the place in the stream, of all together
        return loss

    def log_images(self, batch: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        """Those of the model; of cached latents, what they decode to stands for the image."""
        if "mean" in batch:
            pixels = self.model.decode_first_stage(self.model.scale_factor * batch["mean"].float())
            batch = {**batch, self.model.first_stage_key: rearrange(pixels, "b c H W -> b H W c")}
        return self.model.log_images(batch, **options)

    def train_dataloader(self) -> DataLoader:
        """The batches of this process; asked for once a run, after a checkpoint was read."""
        assert self.loader is not None, "give fit a loader, or this module"
        return self.loader.of(self.samples_done, self.trainer.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over what learns, and its learning rate."""
        deepspeed = getattr(self.trainer.strategy, "config", None) or {}
        offload = "offload_optimizer" in deepspeed.get("zero_optimization", {})
        rate, values = self.settings.rate, self.learning().values()
        optimizer = make_optimizer(values, rate.peak, self.settings.optimization, offload=offload)
        schedule = make_schedule(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Begin the average, from what a checkpoint held if there was one."""
        if self.settings.optimization.ema_decay and self.average is None:
            self.average = MovingAverage(self.learning(), self.settings.optimization.ema_decay)

    def on_train_start(self) -> None:
        """Take torch's random state back, after all else that may have drawn from it."""
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            if len(self._random["cards"]) == torch.cuda.device_count():  # another machine draws anew
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
        limit = self.settings.optimization.max_grad_norm or float("inf")  # the norm is wanted in any case
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
        optimizer.zero_grad(set_to_none=self.settings.optimization.set_grads_to_none)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what learns; add the average, the place in the data and the random state."""
        named = {name.removeprefix(INNER): value for name, value in checkpoint["state_dict"].items()}
        learns = self.learning()
        checkpoint["state_dict"] = {
            name: value for name, value in named.items() if name in learns or name.startswith(BRANCH)
        }
        checkpoint["draws_done"] = self.samples_done  # the name that checkpoints of earlier versions have
        checkpoint["random"] = {"cpu": torch.get_rng_state(), "cards": torch.cuda.get_rng_state_all()}
        if self.average is not None:
            checkpoint["average"] = {"updates": self.average.updates, "shadow": self.average.shadow}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take all that back."""
        stored = checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"{INNER}{name}": value for name, value in stored.items()}
        self.samples_done, self._random = checkpoint["draws_done"], checkpoint["random"]
        if (decay := self.settings.optimization.ema_decay) and "average" in checkpoint:
            self.average = MovingAverage(self.learning(), decay)
            self.average.updates = checkpoint["average"]["updates"]
            self.average.shadow = dict(checkpoint["average"]["shadow"])
        _forget_batches(checkpoint, self.trainer.fit_loop.state_dict())
        _take_rate(checkpoint, self.settings.rate.peak)


def _take_rate(checkpoint: dict[str, Any], peak: float) -> None:
    """Let the learning rate that this run was given count, not that of the run which wrote the checkpoint."""
    for optimizer in checkpoint.get("optimizer_states", ()):  # DeepSpeed keeps its own elsewhere
        for group in optimizer["param_groups"]:
            group["lr"] *= peak / group["initial_lr"]  # of the next step; the schedule makes those after it
            group["initial_lr"] = peak
    for schedule in checkpoint.get("lr_schedulers", ()):
        schedule["base_lrs"] = [peak] * len(schedule["base_lrs"])


def _forget_batches(checkpoint: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Keep Lightning's counts of optimizer steps and let its counts of batches begin anew."""
    kept = ("optim_progress", "scheduler_progress", "epoch_loop.state_dict")  # by the ends of their names
    old = checkpoint["loops"]["fit_loop"]
    checkpoint["loops"]["fit_loop"] = fresh | {name: old[name] for name in old if name.endswith(kept)}
