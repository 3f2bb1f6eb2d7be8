"""The pictures of test_imgs/, which the demo and the README use."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotator import canny, scribble

FOLDER = Path(__file__).parents[2] / "test_imgs"
SKETCHES = {"circle": (250, 262), "star": (272, 286), "heart": (240, 248)}  # a place inside: row, column


def load(name):
    return cv2.cvtColor(cv2.imread(str(FOLDER / f"{name}.png")), cv2.COLOR_BGR2RGB)


def area_around(place, lines):
    """The share of the map that a flood from `place` fills; the map's own size over 512 scales `place`."""
    flooded = np.pad(lines.astype(np.uint8), 1)  # with a way around the outside
    row, column = (p * lines.shape[0] // 512 for p in place)
    cv2.floodFill(flooded, None, (column + 1, row + 1), 2)
    assert flooded[0, 0] != 2, "the outline leaks"
    return (flooded == 2).mean()


@pytest.mark.parametrize("name", SKETCHES)
def test_the_program_draws_the_shipped_sketches(name, tmp_path):
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.main(tmp_path)
    drawn = cv2.imread(str(tmp_path / f"{name}.png"))
    assert drawn.shape == (512, 512, 3)
    assert np.abs(drawn.astype(int) - load(name)).mean() < 0.1  # sine and cosine differ in the last bit


@pytest.mark.parametrize("name", SKETCHES)
def test_sketches_are_outlines_whose_gaps_a_little_ink_would_close(name):
    lines = scribble.annotate(load(name), resolution=128)[:, :, 0]
    assert 0.02 < (lines > 0).mean() < 0.10
    closed = cv2.dilate(lines, np.ones((5, 5), np.uint8)) > 0
    assert 0.05 < area_around(SKETCHES[name], closed) < 0.4


def test_the_star_has_gaps():
    lines = load("star").min(axis=2) < 127
    assert cv2.connectedComponents(lines.astype(np.uint8))[0] > 2


def test_the_coin_gives_one_closed_rim():
    edges = canny.annotate(load("coin"), resolution=128, low=150, high=500)[:, :, 0] > 0
    assert 0.25 < area_around((256, 300), cv2.dilate(edges.astype(np.uint8), np.ones((2, 2)))) < 0.6


def test_every_picture_has_its_source_and_licence_written_down():
    readme = (FOLDER / "README.md").read_text()
    names = {path.name for path in FOLDER.glob("*.png")}
    assert len(names) >= 4
    assert all(f"`{name}`" in readme for name in names)
