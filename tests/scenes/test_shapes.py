import numpy as np
import pytest

from scenes.shapes import SHAPES, outline


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_reaches_exactly_to_the_unit_circle(shape):
    farthest = max(np.linalg.norm(ring, axis=1).max() for ring in outline(shape))
    assert farthest == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_points_of_an_outline_are_evenly_spaced_so_that_a_gap_has_the_length_it_says(shape):
    for ring in outline(shape):
        steps = np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1)
        assert steps.max() < 1.1 * steps.min()
        assert steps.max() < 0.06


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_is_too_thin_to_draw_in_few_pixels(shape):
    areas = [abs(_signed_area(ring)) for ring in outline(shape)]
    assert areas[0] - sum(areas[1:]) > 0.2 * np.pi


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_its_own_mirror_image_or_lies_on_its_side(shape):
    ring = outline(shape)[0]
    axis = 1 if shape == "crescent" else 0
    mirrored = ring * np.where(np.arange(2) == axis, -1, 1)
    distances = np.linalg.norm(ring[:, None] - mirrored[None], axis=2).min(axis=1)
    assert distances.max() < 0.03  # half the distance between two points


def test_a_ring_has_two_circles_with_one_centre():
    outer, inner = outline("ring")
    for circle in (outer, inner):
        radii = np.linalg.norm(circle, axis=1)
        assert radii == pytest.approx(radii.mean(), rel=1e-3)  # chords lie a little inside
    assert np.linalg.norm(inner[0]) < np.linalg.norm(outer[0])


def test_an_unknown_shape_lists_the_known_ones():
    with pytest.raises(ValueError, match="blob.*circle, square, triangle"):
        outline("blob")


def _signed_area(ring):
    x, y = ring.T
    return 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
