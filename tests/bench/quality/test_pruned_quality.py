"""bench.quality.pruned_quality makes each file once for the same weights, and refuses what it does not
know.
"""

import shutil
from pathlib import Path

import pytest

from bench.quality import pruned_quality
from bench.quality.pruned_quality import PrunedQualityFlags

LEVELS = ("2:4", "mlp 25 %")
MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def made(monkeypatch):
    """What would have been made, each an empty file."""
    commands = []

    def make(path, argv):
        if not path.is_file():
            commands.append((path, argv[0]))
            path.touch()

    monkeypatch.setattr(pruned_quality, "_make", make)
    return commands


def rows(config, run, **flags):
    return dict(pruned_quality.pruned_files(PrunedQualityFlags(config=config, run=run, only=LEVELS, **flags)))


def test_each_level_is_pruned_and_trained_on_once(tmp_path, made):
    found = rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=7)
    assert list(found) == ["mlp 25 %", "mlp 25 %, 7 steps", "2:4", "2:4, 7 steps"]
    assert [command for _, command in made] == ["structured", "finetune", "2:4", "finetune"]
    assert [path for path, _ in made] == list(found.values())
    assert rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=7) == found
    assert len(made) == 4
    assert list(rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=0)) == ["mlp 25 %", "2:4"]


def test_files_of_other_weights_are_not_taken_for_these(tmp_path, made):
    for path in MODELS.glob("tiny*"):
        if path.suffix != ".py":
            shutil.copy(path, tmp_path)
    before = rows(tmp_path / "tiny.yaml", tmp_path / "run")
    with (tmp_path / "tiny.safetensors").open("ab") as file:
        file.write(b" ")
    after = rows(tmp_path / "tiny.yaml", tmp_path / "run")
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_an_unknown_level_is_refused_in_one_sentence(tmp_path, capsys):
    assert pruned_quality.main(["--run", str(tmp_path), "--levels", "mlp 1 %"]) == 2
    assert "unknown level 'mlp 1 %': use some of" in capsys.readouterr().err


def test_a_pruned_file_is_made_once_and_scored(tmp_path, capsys):
    flags = [
        "--run",
        str(tmp_path),
        "--levels",
        "2:4",
        "--finetune-steps",
        "0",
        "--count",
        "1",
        "--size",
        "64",
    ]
    assert pruned_quality.main(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 2:4 | ")
    (made,) = tmp_path.glob("*/2-4.safetensors")  # a folder for each set of weights
    time = made.stat().st_mtime_ns
    assert pruned_quality.main(flags) == 0
    assert made.stat().st_mtime_ns == time
