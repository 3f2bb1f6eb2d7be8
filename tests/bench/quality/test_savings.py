"""The bench of step savings: what it counts, how it sums, and what it says of a wrong command line."""

from pathlib import Path

import pytest
import torch

from bench.origin import origin_of
from bench.quality import savings, savings_parts
from bench.quality.held_out import HeldOutFlags
from bench.quality.savings import BETWEEN, BRANCH, LONG, PEER, SAVING_ROWS, WHOLE
from bench.results import Measurement, ResultsFile, by_subject, read_rows
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
    with savings.passes_counted(pipe.model) as passes:
        pipe.generate(["a"], hints, seed=0, steps=4, **fields)
    assert passes == {WHOLE: whole, BETWEEN: between, BRANCH: branch}


def rows_of(parts):
    return by_subject(Measurement(name, "wall", seconds, "s") for name, seconds in parts.items())


def write_parts(path, parts):
    rows = [Measurement(name, "wall", seconds, "s") for name, seconds in parts.items()]
    origin = origin_of("bench.quality.savings_parts", {}, "python -m any", "cpu")
    ResultsFile(path, origin).keep(rows, add=False)
    return str(path)


def test_a_picture_is_the_sum_of_its_parts():
    passes = {WHOLE: 10, BETWEEN: 6, BRANCH: 5}
    assert savings.seconds_of(passes, "outer-2", rows_of(PARTS)) == 10 * 4 + 6 * 1 + 5 * 2 + 0.5 + 0.25 + 3


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
    parts = dict.fromkeys((WHOLE, *CACHE_POINTS, BRANCH, "text", "hint", "decode"), 1.0)
    assert savings.main(["--rows", NAME, "--parts", write_parts(tmp_path / "fp32.json", parts)]) == 0
    long, row = capsys.readouterr().out.splitlines()[-2:]
    assert long == f"| {LONG} | 100 | 0 | 100 | 203.0 | 1.00 x |"  # itself, where no peer was measured
    # Steps 0, 2, 4, 6, 8 are whole; of steps 0 to 5 there is a second pass.
    assert row == f"| {NAME} | 8 | 8 | 8 | 27.0 | {203 / 27:.2f} x |"


def test_a_peer_that_was_measured_is_what_others_are_held_against(tmp_path, capsys):
    ours = {name: value / 2 for name, value in PARTS.items()}
    files = [write_parts(tmp_path / "a.json", PARTS | {PEER: 16.0}), write_parts(tmp_path / "b.json", ours)]
    assert savings.main(["--rows", LONG, "--parts", *files]) == 0
    peer, ours = capsys.readouterr().out.splitlines()[-2:]  # 50 steps, and what ours needs once
    assert peer == "| diffusers, ddim 50 | - | - | - | 803.8 | 1.00 x | - | - |"
    assert ours.endswith(f" | 603.8 | {803.75 / 603.75:.2f} x | 301.9 | {803.75 / 301.875:.2f} x |")


def test_other_settings_are_other_pictures(tmp_path):
    flags = HeldOutFlags(config=Path(TINY), run=tmp_path, count=1, size=SIZE)
    pipeline = Pipeline.from_files(TINY, device="cpu")
    first, _ = flags.pictures("model", lambda: pipeline, {"steps": 1})
    again, _ = flags.pictures("model", lambda: pytest.fail("they are there"), {"steps": 1})
    assert (first[0] == again[0]).all()
    for changed, model, fields in (
        (flags, "model", SAVING_ROWS[LONG]),
        (flags, "another model", {"steps": 1}),
        (HeldOutFlags(config=flags.config, run=tmp_path, count=1, size=SIZE, seed=1), "model", {"steps": 1}),
    ):
        with pytest.raises(RuntimeError, match="made anew"):
            changed.pictures(model, made_anew, fields)


def made_anew():
    raise RuntimeError("made anew")


def test_equal_pictures_are_infinitely_like():
    scenes = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    flags = HeldOutFlags(config=Path(TINY), count=3, size=64)
    (row,) = by_subject(flags.scores("a", list(scenes), itself=list(scenes))).values()
    assert row["PSNR to itself"].value == row["PSNR to itself, low"].value == float("inf")


def test_parts_are_measured_and_whole_pictures_made(tmp_path, capsys):
    out = tmp_path / "parts.json"
    flags = ["--config", TINY, "--size", str(SIZE), "--rounds", "1"]
    assert savings_parts.main([*flags, "--picture", "unipc 8", "--results", str(out)]) == 0
    rows, whole = read_rows(out), "whole picture: unipc 8"
    assert set(rows) == {WHOLE, *CACHE_POINTS, BRANCH, "hint", "text", "decode", whole}
    assert set(rows[whole]) == {"wall", "encode", "sample", "decode"}
    assert f"| {whole} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        (savings, ["--rows", "magic"], "unknown row 'magic'"),
        (savings, ["--count", "0"], "give 1 or more"),
        (savings, ["--parts", "gone.json"], "gone.json"),
        (savings_parts, ["--size", "100"], "pixels in steps of 64"),
        (savings_parts, ["--picture", "magic"], "unknown row 'magic'"),
        (savings_parts, ["--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(command, flags, sentence, capsys):
    assert command.main(flags) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
