import cv2
import numpy as np
import pytest

from annotator.strokes import annotate_negative, annotate_standard


@pytest.fixture
def page():
    """A dark line on lighter paper with a gentle gradient: uint8 [256 256 3]."""
    paper = np.repeat(np.linspace(180, 220, 256)[None, :, None], 256, axis=0).repeat(3, axis=2)
    return cv2.line(paper.astype(np.uint8), (20, 128), (236, 128), (30, 30, 30), 3)


def test_a_dark_line_is_white_and_its_paper_black(page):
    strokes = annotate_standard(page, resolution=256)[:, :, 0]
    assert strokes[128, 40:216].min() > 100
    assert strokes[:100].max() == 0
    assert strokes[160:].max() == 0


def test_a_light_line_is_no_stroke(page):
    inner = annotate_standard(255 - page, resolution=256)[126:131, 40:216]
    assert inner.max() < 10


def test_fainter_ink_gives_the_same_map_as_strong(page):
    """The ink measures itself: half the contrast is brought up."""
    faint = (200 - (200 - page.astype(int)) // 2).clip(0, 255).astype(np.uint8)
    strong, weak = (annotate_standard(x, resolution=256)[128, 40:216, 0].mean() for x in (page, faint))
    assert weak == pytest.approx(strong, rel=0.1)


def test_grain_alone_stays_dark():
    grain = np.random.default_rng(0).normal(128, 2, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    assert annotate_standard(grain, resolution=128).mean() < 10


def test_the_negative_of_the_negative_is_the_grey_drawing(page):
    once = annotate_negative(page, resolution=256)
    twice = annotate_negative(once, resolution=256)
    assert np.array_equal(twice[:, :, 0], cv2.cvtColor(page, cv2.COLOR_RGB2GRAY))
