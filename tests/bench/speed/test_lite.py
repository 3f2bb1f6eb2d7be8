"""The lite branch's two benches: what they count, and what they say of a wrong command line."""

import cv2
import pytest

from bench.quality import lite_quality
from bench.speed import lite
from cldm.model import create_model
from trainer.tiny.export import keep_branch

TINY = "models/tiny.yaml"
COPIES = 4  # weights, gradients and AdamW's two moments
FLOAT = 4  # bytes


@pytest.fixture(scope="module")
def rows():
    bench = lite.Bench(lite.kinds(TINY), resolution=64, batch=1, device="cpu")
    return lite.measure(bench, rounds=1)


def test_training_memory_is_four_copies_of_the_weights(rows):
    for name in (lite.FULL, lite.LITE, lite.WITHIN):
        copies = rows[name]["bytes"] / (FLOAT * rows[name]["weights"])
        assert copies == pytest.approx(COPIES, rel=1e-3)  # and a step counter a tensor


def test_a_lite_step_is_less_arithmetic_onto_the_skips_than_into_the_encoder(rows):
    names = (lite.FLOOR, lite.LITE, lite.WITHIN, lite.FULL)
    flops = [rows[name]["flops"] for name in names]
    assert flops == sorted(flops)


def test_the_table_has_a_row_a_kind_and_its_ratios(rows):
    _, _, plain, *others = lite.table(rows).splitlines()
    assert plain.startswith(f"| {lite.PLAIN} |")
    assert [line.split(" | ")[0] for line in others] == [f"| {name}" for name in list(rows)[1:]]
    assert " | 100.0% | " in others[0]


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--resolution", "100"], ["--config", "no.yaml"]])
def test_a_bench_that_cannot_be_says_why(flags, capsys):
    assert lite.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_kept_branches_are_scored_and_shown(tmp_path, capsys):
    branch = create_model(TINY).control_model
    for steps in (5, 40):
        keep_branch(dict(branch.named_parameters()), tmp_path, steps)
    grid = tmp_path / "out/grid.png"
    flags = ["--count", "2", "--rounds", "1", "--grid", str(grid), "--size", "64"]
    assert lite_quality.main([f"full={TINY}:{tmp_path}", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[3:5]] == [["| full", "5"], ["| full", "40"]]
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
