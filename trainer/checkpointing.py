"""The checkpoints of a run: `checkpoint-N/`, each whole or not there at all, the oldest dropped.

What a checkpoint replaces, and what is beyond the limit, goes only once it is complete. So a full disk or a
power cut costs the steps since the last one and no more.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from common.atomic import atomic_write, check_space
from common.shell import Stopped
from trainer.module import ControlTraining

STATE = "state.ckpt"  # the file, or DeepSpeed's folder, inside a checkpoint
NAME = re.compile(r"checkpoint-(\d+)")  # diffusers' names
LATEST = "latest"  # diffusers' word for --resume-from
MARK = "checkpoint-"  # of unfinished ones, behind the dot
ABANDONED = 60  # seconds without a change; who writes a checkpoint writes all the time
MARGIN = 1.05  # names, learning-rate state and the file system's own needs, over the bytes of the tensors


class CheckpointFolder:
    """The checkpoints in `out`; limit: how many to keep, None for all."""

    def __init__(self, out: Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"checkpoints_total_limit={limit}: keep at least 1, or leave it out to keep all")
        self.out, self.limit = Path(out), limit

    def all(self) -> list[Path]:
        """Complete checkpoints, the oldest first."""
        found = ((NAME.fullmatch(path.name), path) for path in self.out.glob("checkpoint-*"))
        whole = [(int(match[1]), path) for match, path in found if match and (path / STATE).exists()]
        return [path for _, path in sorted(whole)]  # by number: as text 1000 comes before 500

    def find(self, which: str) -> Path:
        """The checkpoint called `which`: latest, or the path of one.

        Raises FileNotFoundError naming what there is.
        """
        there = self.all()
        if which == LATEST:
            if not there:
                raise FileNotFoundError(f"--resume-from latest: {self.out} holds no checkpoint yet")
            return there[-1]
        for path in (Path(which), self.out / which):
            if (path / STATE).exists():
                return path
        listed = ", ".join(path.name for path in there) or "none"
        raise FileNotFoundError(f"--resume-from {which}: no {STATE} in it; {self.out} has {listed}")

    def kept(self) -> str:
        """What a run that ends here can go on from, for messages."""
        there = self.all()
        return f"{there[-1]} is kept" if there else "there is no checkpoint yet"

    def check_space(self, size: float) -> None:
        """OSError unless a checkpoint with tensors of `size` bytes fits on the disk."""
        try:
            check_space(self.out / "the next checkpoint", size * MARGIN)
        except OSError as error:
            cure = "make room or lower --checkpoints-total-limit, then resume"
            raise OSError(f"{error}: {cure}; {self.kept()}") from None

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """An empty folder that becomes checkpoint `step`; what is beyond the limit goes then."""
        self.clean()
        with atomic_write(self.out / f"checkpoint-{step}", MARK) as partial:
            partial.mkdir()
            yield partial
        for path in self.all()[: -self.limit] if self.limit else ():
            shutil.rmtree(path)

    def clean(self) -> None:
        """Remove unfinished checkpoints of runs that were killed; one that still grows is left alone."""
        for folder in self.out.glob(f".{MARK}*.partial"):
            try:
                last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            except FileNotFoundError:  # its run has just finished it
                continue
            if time.time() - last > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


class Checkpoints(pl.Callback):
    """Saves every so many steps, at the end, and when somebody wants to stop; listens for that wish.

    copies: how many times what learns is in a checkpoint: itself, optimizer's states, average. So much room
    must be free before one is begun.
    """

    def __init__(self, folder: CheckpointFolder, every: int, copies: float = 1) -> None:
        self.folder, self.every, self.copies = folder, every, copies
        self._size, self._last = 0.0, -1  # bytes of the next checkpoint; the step that was looked at last

    def setup(self, trainer: pl.Trainer, pl_module: ControlTraining, stage: str) -> None:
        """Look for room; here, while each process still has whole weights, which FSDP then divides."""
        self._size = self.copies * sum(value.nbytes for value in pl_module.learning().values())
        if trainer.is_global_zero:
            self.folder.clean()
        self.folder.check_space(self._size)

    def on_train_start(self, trainer: pl.Trainer, pl_module: ControlTraining) -> None:
        """Listen for Ctrl-C and SIGTERM; here, since Lightning has set its own handlers by now."""
        self._last = trainer.global_step
        pl_module.stop.listen()

    def on_exception(self, trainer: pl.Trainer, pl_module: ControlTraining, exception: BaseException) -> None:
        """End the processes that were begun here with this one; Lightning does so after Ctrl-C alone."""
        if isinstance(exception, Stopped) and trainer.strategy.launcher:
            trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: ControlTraining, *_: Any) -> None:
        """Save when it is time."""
        step = trainer.global_step
        if step == self._last:  # between the parts of an accumulated step
            return
        self._last = step
        if step % self.every == 0 or pl_module.stopping or step >= trainer.max_steps:
            self.save(trainer)
        if pl_module.stopping:
            trainer.should_stop = True  # Lightning ends behind this batch, every process alike

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, whole or not at all. Raises OSError in every process when it does not fit."""
        with ExitStack() as written:
            partial, trouble = None, None
            if trainer.is_global_zero:
                try:
                    self.folder.check_space(self._size)
                    partial = written.enter_context(self.folder.write(trainer.global_step))
                except OSError as error:
                    trouble = str(error)
            partial, trouble = trainer.strategy.broadcast((partial, trouble))
            if trouble:
                raise OSError(trouble)
            try:
                trainer.save_checkpoint(partial / STATE)
            except (OSError, RuntimeError) as error:  # torch calls a full disk a RuntimeError
                raise OSError(f"{error}; {self.folder.kept()}") from error
        trainer.strategy.barrier("checkpoint")  # nobody goes on before it has its name


class DirectCheckpointIO(TorchCheckpointIO):
    """Checkpoints straight to disk: Lightning's own way holds each a second time in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write into a folder that is there."""
        torch.save(checkpoint, path)
