import numpy as np
import pytest

from annotator.picture import annotate, annotate_tile
from annotator.util import resize_image


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)


def test_the_picture_is_its_own_map(photo):
    assert np.array_equal(annotate(photo, resolution=64), resize_image(photo, 64))
    assert np.array_equal(annotate_tile(photo, resolution=64), resize_image(photo, 64))


def test_a_factor_leaves_as_many_pixels_as_it_says(photo):
    """What is coarser than the factor stays, what is finer goes."""
    fine = annotate_tile(photo, resolution=128, factor=8).astype(float)
    means = photo.reshape(16, 8, 24, 8, 3).mean(axis=(1, 3))
    assert np.abs(fine.reshape(16, 8, 24, 8, 3).mean(axis=(1, 3)) - means).mean() < means.std() / 3
    assert fine.std() < photo.std() / 4


def test_a_larger_factor_is_never_sharper(photo):
    sharpness = [np.abs(np.diff(annotate_tile(photo, resolution=128, factor=f).astype(int), axis=1)).mean()
                 for f in (1, 2, 4, 8)]  # fmt: skip
    assert sharpness == sorted(sharpness, reverse=True)
