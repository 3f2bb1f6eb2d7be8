"""Runs of a small model under Lightning, as the training command makes them."""

import pytest
import torch

from scenes.fill50k import Recipe, make_dataset
from tests.small_models import build
from trainer.data.dataset import ControlDataset, SampleStream, StreamLoader
from trainer.settings import LearningRate, Loss, Optimization, TrainingSettings, Transform

pl = pytest.importorskip("pytorch_lightning")
checkpointing = pytest.importorskip("trainer.checkpointing")
STATE = checkpointing.STATE

SIDE = 64
SETTINGS = TrainingSettings(
    LearningRate(1e-3, "cosine", warmup=2, total=10), Loss(snr_gamma=5.0), Optimization(ema_decay=0.9)
)


def small_data(folder, count, **transform):
    """So many generated pairs."""
    make_dataset(folder, count, Recipe(size=SIDE))
    return ControlDataset(folder, Transform(SIDE, **transform))


class Run:
    """A run of a small model in a folder of its own."""

    def __init__(self, data, out, settings=SETTINGS, batch=2, limit=None, **trainer):
        from trainer.module import ControlTraining

        self.folder = checkpointing.CheckpointFolder(out, limit)
        every = trainer.pop("every", 100)
        options = {
            "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "plugins": [checkpointing.DirectCheckpointIO()],
            "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1,
            "use_distributed_sampler": False,
        }  # fmt: skip
        self.module = ControlTraining(build(), settings, StreamLoader(SampleStream(data, 0), batch))
        self.checkpoints = checkpointing.Checkpoints(self.folder, every)
        callbacks = [self.checkpoints, *trainer.pop("callbacks", [])]
        self.trainer = pl.Trainer(default_root_dir=out, callbacks=callbacks, **options | trainer)

    def go(self, resume=None):
        path = resume and self.folder.find(resume) / STATE
        self.trainer.fit(self.module, ckpt_path=path, weights_only=True)
        return self

    def state(self):
        return torch.load(self.folder.find("latest") / STATE, weights_only=True)


class At(pl.Callback):
    """Does something once a step is done."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            self.act(module)
