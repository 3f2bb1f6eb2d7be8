"""The bench of step savings: what it counts, how it sums, and what it says of a wrong command line."""

import json

import pytest
import torch

from bench.quality import savings, savings_parts
from bench.quality.savings_rows import (
    BETWEEN,
    BRANCH,
    LONG,
    ROWS,
    UNSAVED,
    WHOLE,
    Task,
    likeness,
    passes_counted,
)
from cldm.pipeline import Pipeline
from ldm.modules.feature_cache import CACHE_POINTS

TINY = "models/tiny.yaml"
SIZE = 64
PARTS = {WHOLE: 4.0, "outer-2": 1.0, BRANCH: 2.0, "text": 0.5, "hint": 0.25, "decode": 3.0}


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_files(TINY, device="cpu")


@pytest.mark.parametrize(
    ("fields", "whole", "between", "branch"),
    [
        # The tiny model's guided control: the pass without the prompt has none.
        ({}, 8, 0, 4),
        ({"guided_control": False}, 8, 0, 8),  # both passes in one call
        ({"guidance_end": 0.5}, 6, 0, 4),
        ({"reuse_every": 2}, 4, 4, 2),
        ({"reuse_every": 2, "guidance_end": 0.25, "control_every": 4}, 3, 2, 1),
        ({"control_every": 2}, 8, 0, 2),
    ],
)
def test_passes_are_counted_by_kind(pipe, fields, whole, between, branch):
    hints = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with passes_counted(pipe.model) as passes:
        pipe.generate(["a"], hints, seed=0, steps=4, **fields)
    assert passes == {WHOLE: whole, BETWEEN: between, BRANCH: branch}


def test_a_picture_is_the_sum_of_its_parts():
    passes = {WHOLE: 10, BETWEEN: 6, BRANCH: 5}
    assert savings.seconds_of(passes, "outer-2", PARTS) == 10 * 4 + 6 * 1 + 5 * 2 + 0.5 + 0.25 + 3


def test_equal_pictures_are_infinitely_like():
    scenes = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8).numpy()
    assert likeness(list(scenes), list(scenes))["psnr"] == float("inf")


NAME = "unipc 10, guidance to 0.6, reuse 2"


def test_rows_are_made_once(tmp_path, capsys):
    flags = ["--count", "2", "--size", str(SIZE), "--run", str(tmp_path), "--rows", NAME]
    said = []
    for _ in range(2):
        assert savings.main(flags) == 0
        said.append(capsys.readouterr().out)
        made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert len(made) == 3  # what it is held against too
    assert said[0] == said[1]
    assert said[0].splitlines()[-1].startswith(f"| {NAME} | ")
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_seconds_are_those_of_the_passes_that_are_made(tmp_path, capsys):
    parts = {name: {"median": 1.0} for name in (WHOLE, *CACHE_POINTS, BRANCH, "text", "hint", "decode")}
    (tmp_path / "fp32.json").write_text(json.dumps({"parts": parts}))
    assert savings.main(["--rows", NAME, "--parts", str(tmp_path / "fp32.json")]) == 0
    long, row = capsys.readouterr().out.splitlines()[-2:]
    assert long == f"| {LONG} | 100 | 0 | 100 | 203.0 | 1.00 x |"  # itself, where no peer was measured
    # Steps 0, 2, 4, 6, 8 are whole; of steps 0 to 5 there is a second pass.
    assert row == f"| {NAME} | 8 | 8 | 8 | 27.0 | {203 / 27:.2f} x |"


def test_a_peer_that_was_measured_is_what_others_are_held_against():
    passes = {LONG: {WHOLE: 100, BETWEEN: 0, BRANCH: 100}}
    with_peer, ours = ({name: {"median": value} for name, value in one.items()} for one in (
        PARTS | {savings.PEER: 16.0}, {name: value / 2 for name, value in PARTS.items()},
    ))  # fmt: skip
    first, *_, row = savings.seconds_table(
        passes, {"a": {"parts": with_peer}, "b": {"parts": ours}}
    ).splitlines()
    assert first == "diffusers, ddim 50: 803.8 s"  # 50 steps, and what ours needs once
    assert row.endswith(f" | 603.8 | {803.75 / 603.75:.2f} x | 301.9 | {803.75 / 301.875:.2f} x |")


def test_other_settings_are_other_pictures(tmp_path):
    task = Task(savings.Path(TINY), tmp_path)
    others = [task.path({}), task.path(ROWS[LONG]), Task(task.config, tmp_path, seed=1).path({})]
    assert len(set(others)) == 3
    assert task.path(ROWS[UNSAVED]) == others[0]


def test_parts_are_measured_and_whole_pictures_made(tmp_path, capsys):
    out = tmp_path / "parts.json"
    flags = [
        "--config",
        TINY,
        "--size",
        str(SIZE),
        "--rounds",
        "1",
        "--picture",
        "unipc 8",
        "--json",
        str(out),
    ]
    assert savings_parts.main(flags) == 0
    report = json.loads(out.read_text())
    assert set(report["parts"]) == {WHOLE, *CACHE_POINTS, BRANCH, "hint", "text", "decode"}
    assert set(report["pictures"]["unipc 8"]) == {"annotate", "encode", "sample", "decode"}
    assert "| whole picture: unipc 8 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        (savings, ["--rows", "magic"], "unknown row 'magic'"),
        (savings, ["--count", "0"], "give 1 or more"),
        (savings, ["--parts", "gone.json"], "gone.json"),
        (savings_parts, ["--size", "100"], "pixels in steps of 64"),
        (savings_parts, ["--picture", "magic"], "unknown row 'magic'"),
        (savings_parts, ["--json", "gone/parts.json"], "no folder gone"),
        (savings_parts, ["--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(command, flags, sentence, capsys):
    assert command.main(flags) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
