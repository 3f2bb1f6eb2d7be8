import cv2
import numpy as np
import pytest

from annotator.shuffle import ContentShuffleDetector, annotate

COLOURS = np.uint8([[250, 20, 30], [30, 200, 60], [20, 60, 240], [240, 230, 40]])


@pytest.fixture(scope="module")
def tiles():
    """Squares of four colours, a quarter of the picture each: uint8 [256 320 3]."""
    numbers = (np.arange(256)[:, None] // 16 + 2 * (np.arange(320)[None] // 16)) % 4
    return COLOURS[numbers]


def shares(picture):
    """Which part of the picture is nearest to each colour, and how far from any the pixels are."""
    distances = np.linalg.norm(picture.reshape(-1, 1, 3).astype(float) - COLOURS, axis=2)
    return np.bincount(distances.argmin(axis=1), minlength=4) / len(distances), distances.min(axis=1)


@pytest.mark.parametrize("cell", [64, 256])
def test_colours_stay_in_their_shares(tiles, cell):
    for seed in range(4):
        share, distance = shares(annotate(tiles, resolution=256, seed=seed, cell=cell))
        assert share == pytest.approx([0.25] * 4, abs=0.06)
        assert (distance > 30).mean() < 0.2, "only where two squares meet are their colours mixed"


def test_places_do_not_stay(tiles):
    moved = annotate(tiles, resolution=256)
    unmoved = (np.abs(moved.astype(int) - tiles).max(axis=2) < 10).mean()
    assert unmoved < 0.4, "by chance a quarter of the pixels keeps its colour"


def test_a_seed_moves_every_picture_the_same_way_and_another_seed_elsewhere(tiles):
    first, same, other = (annotate(tiles, resolution=256, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first, same)
    assert (first != other).any(axis=2).mean() > 0.3
    inverse = annotate(255 - tiles, resolution=256, seed=7)
    assert np.abs(inverse.astype(int) + first - 255).max() <= 1  # rounding


def test_neighbours_mostly_stay_neighbours(tiles):
    smooth = cv2.GaussianBlur(tiles, (0, 0), 30)
    moved = annotate(smooth, resolution=256).astype(int)
    assert np.abs(np.diff(moved, axis=1)).mean() < 3


def test_the_published_class_draws_from_the_generator_that_scripts_seed(tiles):
    shuffle, before = ContentShuffleDetector(), np.random.get_state()
    try:
        np.random.seed(3)
        first = shuffle(tiles)
        np.random.seed(3)
        assert np.array_equal(shuffle(tiles, h=256, w=320, f=256), first)
        assert not np.array_equal(shuffle(tiles), first)
    finally:
        np.random.set_state(before)
    assert first.shape == tiles.shape
    assert shuffle(tiles, h=100, w=90).shape == (100, 90, 3)
