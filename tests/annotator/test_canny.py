import cv2
import numpy as np
import pytest

from annotator.canny import CannyDetector, annotate
from annotator.util import resize_image


@pytest.fixture
def photo():
    """Smooth blobs with a little grain: uint8 [160 192 3]."""
    rng = np.random.default_rng(0)
    blobs = cv2.GaussianBlur(rng.normal(size=(160, 192, 3)), (0, 0), 6)
    return np.clip(128 + 900 * blobs + rng.normal(size=blobs.shape), 0, 255).astype(np.uint8)


def test_the_published_detector_is_opencv_canny_in_one_channel(photo):
    edges = CannyDetector()(photo, 100, 200)
    assert edges.shape == photo.shape[:2]
    assert np.array_equal(edges, cv2.Canny(photo, 100, 200))


def test_the_map_is_the_canny_of_the_resized_picture(photo):
    edges = CannyDetector()(resize_image(photo, 128), 100, 200)
    assert np.array_equal(annotate(photo, resolution=128), np.stack([edges] * 3, axis=2))
    assert set(np.unique(edges)) == {0, 255}


def test_a_bright_disc_gives_one_closed_ring_at_its_rim():
    disc = cv2.circle(np.zeros((128, 128, 3), np.uint8), (64, 64), 40, (255, 255, 255), cv2.FILLED)
    edges = annotate(disc, resolution=128)[:, :, 0].copy()
    y, x = np.nonzero(edges)
    assert np.abs(np.hypot(y - 64, x - 64) - 40).max() <= 2  # Canny marks either side of the step
    outside = np.zeros((130, 130), np.uint8)
    cv2.floodFill(edges, outside, (0, 0), 128)
    assert edges[64, 64] == 0, "the flood from the corner must not reach the middle"


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_picture_gives_the_mirrored_map(photo, axis):
    there = annotate(np.ascontiguousarray(np.flip(photo, axis)), resolution=160)
    back = annotate(photo, resolution=160)
    # Of two equally strong neighbours one is taken: an edge may move by a pixel, a weak one may come or go.
    grown = cv2.dilate(back, np.ones((3, 3), np.uint8))
    assert (grown[np.flip(there, axis) > 0] > 0).mean() > 0.95
    assert (np.flip(there, axis) == back).mean() > 0.99


def test_a_higher_threshold_never_adds_an_edge(photo):
    few, many = (annotate(photo, resolution=128, low=low, high=2 * low) for low in (150, 50))
    assert not (few & ~many).any()
    assert few.sum() < many.sum()


def test_negative_gives_the_same_edges(photo):
    assert np.array_equal(annotate(255 - photo, resolution=160), annotate(photo, resolution=160))


@pytest.mark.parametrize(("low", "high"), [(200, 100), (100, 100), (-1, 100), (float("nan"), 100)])
def test_thresholds_in_the_wrong_order_are_refused(photo, low, high):
    with pytest.raises(ValueError, match="0 <= low < high, such as 100 and 200"):
        annotate(photo, resolution=128, low=low, high=high)
