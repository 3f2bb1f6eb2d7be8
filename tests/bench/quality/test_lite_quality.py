"""Branches that a run of training kept are scored and shown."""

import cv2
import pytest

from bench.quality import lite_quality
from cldm.model import create_model
from trainer.tiny.export import keep_branch

TINY = "models/tiny.yaml"


def test_kept_branches_are_scored_and_shown(tmp_path, capsys):
    branch = create_model(TINY).control_model
    for steps in (5, 40):
        keep_branch(dict(branch.named_parameters()), tmp_path, steps)
    grid = tmp_path / "out/grid.png"
    flags = ["--count", "2", "--size", "64", "--grid", str(grid), "--run", str(tmp_path / "run")]
    assert lite_quality.main([f"full={TINY}:{tmp_path}", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| full, 5 steps", "| full, 40 steps"]
    height, width = cv2.imread(str(grid)).shape[:2]
    assert height > 4 * 64  # outline, truth and two branches
    assert width > 2 * 64  # two scenes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("runs/full", "is not NAME=YAML:FOLDER"), (f"full={TINY}:nowhere", "nowhere has no control-STEP")],
)
def test_a_branch_that_cannot_be_scored_says_why(text, sentence, capsys):
    assert lite_quality.main([text]) == 2
    assert sentence in capsys.readouterr().err
