"""Models on the same seeds: a table with differences, rows, a grid and the worst pictures."""

import json

import numpy as np
import pytest

from bench.results import Measurement
from eval import compare
from eval.compare import main
from eval.comparison_grids import difference, worst
from eval.intervals import NO_DIFFERENCE
from tests.small_files import write_small_model

FLAGS = ["--resolution", "64", "--steps", "2", "--count", "2", "--rounds", "0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"))


def test_a_model_against_itself_shows_no_measurable_difference(config, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    words = [f"a={config}", f"b={config}", "--out", str(tmp_path / "out"), "--metrics", "psnr", "ssim"]
    assert main([*words, *FLAGS, "--results", str(rows)]) == 0
    table = capsys.readouterr().out
    assert f"b - a: PSNR {NO_DIFFERENCE}; SSIM {NO_DIFFERENCE}" in table
    lines = {line["subject"]: line["values"] for line in map(json.loads, rows.read_text().splitlines())}
    assert list(lines) == ["a", "b", "b - a"]
    assert lines["b"]["PSNR to a"]["value"] == "inf"
    assert lines["a"]["followed"]["n"] == 2
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"grid.png", "table.md", "worst-psnr.png", "worst-ssim.png"}
    assert (tmp_path / "out/table.md").read_text() == table


def test_time_and_memory_come_with_the_rest(config, tmp_path, capsys, monkeypatch):
    cost = Measurement.of("a", "picture", "s", [2.0])
    monkeypatch.setattr(compare, "costs", lambda forms, work: [cost])
    words = [f"a={config}", "--out", str(tmp_path / "out"), "--metrics", "psnr", *FLAGS, "--rounds", "1"]
    assert main(words) == 0
    head, _, row = capsys.readouterr().out.splitlines()[2:5]
    assert dict(zip(head.split("|"), row.split("|"), strict=True))[" s a picture "] == " 2.00 "


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--rounds", "-1"], "rounds=-1: give 0 or more"), (["--metrics", "beauty"], "beauty")],
)
def test_a_mistake_is_one_sentence(config, tmp_path, capsys, flags, words):
    assert main([f"a={config}", "--out", str(tmp_path / "out"), *FLAGS, *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("better", "places"), [("higher", [1, 0, 3]), ("lower", [3, 0, 1])])
def test_the_worst_come_first_and_pictures_without_a_value_never(better, places):
    assert worst(np.array([2.0, 1.0, np.nan, 3.0]), better) == places


def test_a_difference_of_equal_pictures_is_grey_and_four_times_what_it_is():
    image = np.full((4, 4, 3), 100, np.uint8)
    assert (difference(image, image) == 128).all()
    assert (difference(image + 3, image) == 140).all()
