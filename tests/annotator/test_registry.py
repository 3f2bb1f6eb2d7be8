import inspect

import numpy as np
import pytest

from annotator.registry import ANNOTATORS
from annotator.util import target_size


@pytest.mark.parametrize("name", ANNOTATORS)
@pytest.mark.parametrize("size", [(64, 64), (200, 131), (97, 300)])
def test_every_annotator_gives_a_binary_map_of_the_target_size(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    before = image.copy()
    control_map = ANNOTATORS[name](image, resolution=64)
    assert control_map.dtype == np.uint8
    assert control_map.shape == (*target_size(*size, 64), 3)
    assert np.array_equal(image, before), "the picture itself is not changed"


@pytest.mark.parametrize("name", ANNOTATORS)
def test_every_annotator_gives_the_same_bytes_twice(name):
    image = np.random.default_rng(1).integers(0, 256, (90, 70, 3), np.uint8)
    first, second = (ANNOTATORS[name](image, resolution=64) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ANNOTATORS)
def test_every_annotator_takes_image_and_resolution_and_defaults_for_the_rest(name):
    image, resolution, *rest = inspect.signature(ANNOTATORS[name]).parameters.values()
    assert (image.name, resolution.name) == ("image", "resolution")
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)
