from dataclasses import replace

import numpy as np
import pytest

from eval.control import SHAPE_SIDE, ShapeReader, normalised
from eval.fill50k import held_out_scenes
from eval.prompts import main, score, shape_reader
from scenes.colours import COLOURS
from scenes.shape_scenes import render
from scenes.shapes import SHAPES


@pytest.fixture(scope="module")
def reader():
    return shape_reader()


def disc(size, radius, centre):
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def test_place_and_size_of_a_mask_are_forgotten():
    near, far = normalised(disc(64, 10, (20, 41))), normalised(disc(200, 60, (90, 70)))
    assert near.shape == (SHAPE_SIDE, SHAPE_SIDE)
    assert np.count_nonzero(near & far) / np.count_nonzero(near | far) > 0.95


def test_shapes_of_held_out_scenes_are_read_right(reader):
    scenes = held_out_scenes(200)
    assert np.mean([reader(render(scene, 128)[2]) == scene.shape for scene in scenes]) > 0.98


def test_what_is_no_shape_has_no_name(reader):
    rng = np.random.default_rng(0)
    assert reader(rng.random((64, 64)) > 0.5) is None
    assert reader(np.zeros((64, 64), bool)) is None


def test_the_example_itself_is_known_by_its_name():
    masks = {"small": disc(64, 9, (30, 30)), "wide": np.indices((64, 64))[0] // 8 == 3}
    reader = ShapeReader({name: [mask] for name, mask in masks.items()})
    assert {name: reader(mask) for name, mask in masks.items()} == {name: name for name in masks}


def test_true_pictures_score_full_marks_and_swapped_prompts_none():
    exact = [replace(scene, wobble=0.0) for scene in held_out_scenes(20)]
    pictures = [render(scene, 128)[1] for scene in exact]
    truth = score(pictures, exact)
    assert truth.shaped.all()
    assert truth.coloured.all()
    wrong = [
        replace(scene, shape=SHAPES[SHAPES.index(scene.shape) - 1], fill=scene.background) for scene in exact
    ]
    lie = score(pictures, wrong)
    assert not lie.shaped.any()
    assert not lie.coloured.any()


def test_a_plain_picture_has_no_shape_and_not_both_colours():
    scene = held_out_scenes(1)[0]
    plain = np.full((64, 64, 3), COLOURS[scene.background], np.uint8)
    scores = score([plain], [scene])
    assert scores.seen == [None]
    assert not scores.coloured.any()


def test_bad_counts_are_refused_in_a_sentence(capsys):
    assert main(["--count", "0"]) == 2
    assert "both must be 1 or more" in capsys.readouterr().err
