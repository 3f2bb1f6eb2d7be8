"""Checkpoints are whole or not there at all, and only the last ones stay."""

from contextlib import suppress

import pytest

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
