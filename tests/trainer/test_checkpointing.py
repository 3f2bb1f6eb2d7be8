"""Checkpoints are whole or not there at all, and only the last ones stay."""

import os
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from common.shell import Stopped
from tests.small_runs import Run, small_data
from trainer import checkpointing
from trainer.checkpointing import STATE, CheckpointFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("fill50k"), 4)


def test_checkpoints_come_every_so_many_steps_and_the_oldest_go(data, tmp_path):
    run = Run(data, tmp_path, max_steps=7, every=2, limit=2).go()
    assert [path.name for path in run.folder.all()] == ["checkpoint-6", "checkpoint-7"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("where", ["space", "write"])
def test_a_full_disk_costs_no_checkpoint(data, tmp_path, where, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = Run(data, tmp_path, max_steps=4, every=2)
    if where == "space":
        run.checkpoints.copies = 2**40
    else:
        run.go()
        run = Run(data, tmp_path, max_steps=8, every=2)
        monkeypatch.setattr(checkpointing.torch, "save", full)
    with pytest.raises(
        OSError,
        match="MiB are free in .*: make room" if where == "space" else "not written: .*checkpoint-4 is kept",
    ):
        run.go(None if where == "space" else "latest")
    kept = [] if where == "space" else ["checkpoint-2", "checkpoint-4"]
    assert [path.name for path in run.folder.all()] == kept
    assert not list(tmp_path.glob(".*"))


def test_checkpoint_folders_are_found_and_replaced(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        folder.find("latest")
    for step, text in ((9, "a"), (10, "b"), (9, "c")):
        with folder.write(step) as partial:
            (partial / STATE).write_text(text)
    with suppress(KeyboardInterrupt), folder.write(11) as partial:
        (partial / STATE).write_text("half")
        raise KeyboardInterrupt
    assert folder.find("latest").name == "checkpoint-10"
    assert (folder.find("checkpoint-9") / STATE).read_text() == "c"
    with pytest.raises(FileNotFoundError, match="checkpoint-3: no state.ckpt in it; .* has checkpoint-9, "):
        folder.find("checkpoint-3")
    with pytest.raises(ValueError, match="keep at least 1"):
        CheckpointFolder(tmp_path, 0)


def test_only_what_a_killed_run_left_is_removed(data, tmp_path):
    names = {"other": ".0a1b.partial", "grows": ".checkpoint-1a.partial", "killed": ".checkpoint-1b.partial"}
    hour_ago = time.time() - 3600
    for name, folder in names.items():
        state = tmp_path / folder / STATE
        state.parent.mkdir()
        state.write_text(name)
        if name != "grows":
            for path in (state, state.parent):
                os.utime(path, (hour_ago, hour_ago))
    Run(data, tmp_path, max_steps=1).go()
    assert {path.name for path in tmp_path.glob(".*")} == {names["other"], names["grows"]}


def test_room_is_looked_for_before_weights_are_divided_among_processes(data, tmp_path, monkeypatch):
    run, sizes = Run(data, tmp_path, max_steps=1), []
    monkeypatch.setattr(run.folder, "check_space", sizes.append)
    whole = sum(value.nbytes for value in run.module.learning().values())

    class Divide(pl.Callback):
        def on_fit_start(self, trainer, module):
            module.learning = dict

    run.trainer.callbacks.insert(0, Divide())
    with suppress(Exception):  # nothing is left to learn
        run.go()
    assert sizes[0] == whole


def test_a_second_signal_ends_the_processes_that_were_begun_too(data, tmp_path):
    killed = []
    run = Run(data, tmp_path, max_steps=1)
    run.trainer.strategy._launcher = SimpleNamespace(kill=killed.append)
    for error in (Stopped("at once"), ValueError("else")):
        run.checkpoints.on_exception(run.trainer, run.module, error)
    assert len(killed) == 1
