"""Two processes learn what one with the doubled batch does; either goes on from the other's checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scenes.fill50k import Recipe, make_dataset
from tests.small_runs import SIDE, Run, pl
from trainer.checkpointing import CheckpointFolder
from trainer.data.dataset import ControlDataset
from trainer.settings import LearningRate, Optimization, TrainingSettings, Transform

ROOT = Path(__file__).parents[2]
SETTINGS = TrainingSettings(LearningRate(1e-2), optimization=Optimization(ema_decay=0.5))
PROCESSES, BATCH, STEPS = 2, 2, 4


class Note(pl.Callback):
    """Writes down which samples each process saw."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, trainer, module, outputs, batch, *_):
        self.seen.append(batch["number"].tolist())
        path = self.folder / f"numbers-{trainer.global_rank}-of-{trainer.world_size}.json"
        path.write_text(json.dumps(self.seen))


def train(data, out, **options):
    """A run in this process, or in several that are forked from it."""
    dataset = ControlDataset(data, Transform(SIDE, flip=True))
    resume = options.pop("resume", None)
    return Run(dataset, out, SETTINGS, callbacks=[Note(out)], every=2, **options).go(resume)


if __name__ == "__main__":  # a process that has not used autograd yet, as forking needs
    torch.set_num_threads(1)
    out = Path(sys.argv[2])
    out.mkdir()
    train(sys.argv[1], out, batch=BATCH, max_steps=STEPS, strategy="ddp_fork", devices=PROCESSES)
    raise SystemExit(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    make_dataset(folder / "data", 6, Recipe(size=SIDE))
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    command = [sys.executable, "-m", "tests.trainer.test_distributed", folder / "data", folder / "two"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "one").mkdir()
    train(folder / "data", folder / "one", batch=BATCH * PROCESSES, max_steps=STEPS)
    return folder


def weights(folder, name="latest"):
    return torch.load(CheckpointFolder(folder).find(name) / "state.ckpt", weights_only=True)["state_dict"]


def assert_equal_to_rounding(one, other):
    """Sums in another order; Adam divides by their size, so that tiny gradients may even change sign."""
    assert one.keys() == other.keys()
    error = sum((one[name] - other[name]).double().square().sum() for name in one)
    size = sum(one[name].double().square().sum() for name in one)
    assert (error / size).sqrt() < 1e-3


def test_two_processes_give_the_weights_of_one_with_the_doubled_batch(runs):
    one, two = weights(runs / "one"), weights(runs / "two")
    start = weights(runs / "one", "checkpoint-2")
    assert_equal_to_rounding(one, two)
    with pytest.raises(AssertionError):  # two steps more are more than rounding
        assert_equal_to_rounding(one, start)


def test_the_data_is_split_without_overlap_and_without_gaps(runs):
    (single,) = (json.loads(path.read_text()) for path in (runs / "one").glob("numbers-*.json"))
    parts = [
        json.loads((runs / f"two/numbers-{rank}-of-{PROCESSES}.json").read_text())
        for rank in range(PROCESSES)
    ]
    for step in range(STEPS):
        assert sum((part[step] for part in parts), []) == single[step]
    assert sorted(sum(single, [])) == list(range(STEPS * BATCH * PROCESSES))


def test_only_the_first_process_writes(runs):
    for name in ("one", "two"):
        names = sorted(path.name for path in (runs / name).iterdir() if not path.name.startswith("numbers"))
        assert names == ["checkpoint-2", "checkpoint-4"]


def test_one_process_goes_on_from_the_checkpoint_of_two(runs):
    """The average and the place in the data come along."""
    resumed = train(
        runs / "data", runs / "two", batch=BATCH, accumulate_grad_batches=PROCESSES, max_steps=STEPS,
        resume="checkpoint-2",
    )  # fmt: skip
    seen = json.loads((runs / "two/numbers-0-of-1.json").read_text())
    assert seen[0][0] == 2 * BATCH * PROCESSES
    assert resumed.state()["average"]["updates"] == STEPS
    assert_equal_to_rounding(weights(runs / "one"), resumed.state()["state_dict"])
