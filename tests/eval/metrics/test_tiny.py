"""The tiny model's own distance rises with whatever makes its pictures worse."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.metrics.metric import Picture, Tools
from eval.metrics.tiny import FD_TINY, FLOOR, SIZE
from scenes.shape_scenes import random_scene, render

MODEL = Path(__file__).parents[3] / "models" / "tiny.safetensors"


@pytest.fixture(scope="module")
def measured():
    """Images -> their distance from `FLOOR` scenes of another seed."""
    compute = FD_TINY.feature.open(Tools(MODEL, "cpu"))
    rows = lambda images: compute([Picture(np.ascontiguousarray(one)) for one in images])  # noqa: E731
    truth = rows(draw(scenes(1)))
    return lambda images: FD_TINY.distance(rows(images), truth, 0).value


def scenes(seed, without=None):
    found = (random_scene(np.random.default_rng([seed, number])) for number in range(2 * FLOOR))
    return [scene for scene in found if scene.shape != without][:FLOOR]


def draw(drawn):
    return [render(scene, 64)[1] for scene in drawn]


@pytest.fixture(scope="module")
def good(measured):
    return measured(draw(scenes(2)))


def blur(image, sigma):
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noisy(images, level):
    rng = np.random.default_rng(0)
    return [np.clip(x + rng.normal(size=x.shape) * level, 0, 255).astype(np.uint8) for x in images]


@pytest.mark.slow
@pytest.mark.parametrize(
    "worse",
    [
        pytest.param([lambda x, s=s: [blur(one, s) for one in x] for s in (1, 2)], id="blur"),
        pytest.param([lambda x, s=s: noisy(x, s) for s in (15, 40)], id="noise"),
        pytest.param([lambda x: [one[..., ::-1] for one in x]], id="swapped channels"),
    ],
)
def test_it_rises_with_what_is_done_to_pictures(worse, measured, good):
    values = [good, *(measured(change(draw(scenes(2)))) for change in worse)]
    assert all(low < 0.9 * high for low, high in zip(values, values[1:], strict=False)), values


@pytest.mark.slow
def test_it_rises_where_all_pictures_have_one_pair_of_colours(measured, good):
    plain = [replace(scene, fill="red", background="blue") for scene in scenes(2)]
    assert measured(draw(plain)) > 1.1 * good


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_it_rises_where_a_shape_is_missing(shape, measured, good):
    assert measured(draw(scenes(2, without=shape))) > 1.1 * good


def test_a_set_is_no_distance_from_itself_and_far_from_its_blurred_copy():
    compute = FD_TINY.feature.open(Tools(MODEL, "cpu"))
    images = draw(scenes(1)[:24])
    rows, blurred = (
        compute([Picture(one) for one in side]) for side in (images, [blur(x, 3) for x in images])
    )
    assert FD_TINY.distance(rows, rows, 0).value == pytest.approx(0, abs=1e-9)
    assert FD_TINY.distance(blurred, rows, 0).value > 0.01


def test_it_has_so_few_numbers_that_its_floor_is_enough():
    assert SIZE <= 64 < FLOOR
