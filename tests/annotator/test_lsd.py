import numpy as np
import pytest

from annotator.lsd import annotate, segments


@pytest.fixture
def square():
    """A white square of 128 on black: uint8 [256 256]."""
    page = np.zeros((256, 256), np.uint8)
    page[64:192, 64:192] = 255
    return page


def test_a_square_gives_its_four_sides(square):
    sides = segments(square, 20)
    assert len(sides) == 4
    ends = np.array(sides).reshape(4, 2, 2)
    assert np.abs(np.abs(ends - 127.5).max(axis=2) - 64).max() < 2, "each end lies on the border"
    assert np.hypot(*(ends[:, 1] - ends[:, 0]).T) == pytest.approx([127] * 4, abs=3)


def test_short_lines_are_left_out(square):
    square[20:30, 20:30] = 255
    counts = [len(segments(square, shortest)) for shortest in (0, 20, 140)]
    assert counts == [8, 4, 0]


def test_the_map_shows_them_as_lines_of_one_pixel(square):
    control_map = annotate(square, resolution=256)
    assert set(np.unique(control_map)) == {0, 255}
    assert (control_map[128, :, 0] > 0).sum() == 2
    assert (control_map[:, 128, 0] > 0).sum() == 2


def test_a_plain_picture_has_none():
    assert not annotate(np.full((64, 64, 3), 90, np.uint8), resolution=64).any()
