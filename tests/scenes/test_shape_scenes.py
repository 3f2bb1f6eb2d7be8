from dataclasses import replace

import cv2
import numpy as np
import pytest

from scenes.colours import COLOURS, differ_clearly
from scenes.shape_scenes import HELD_OUT_ONE_IN, WIDTH_RANGE, Scene, is_held_out, random_scene, render
from scenes.shapes import SHAPES

CIRCLE = Scene("circle", "cyan", "brown")
GAPS = ((0.1, 0.06), (0.6, 0.06))


def scenes(count, **options):
    rng = np.random.default_rng(1)
    return [random_scene(rng, **options) for _ in range(count)]


def test_the_prompt_is_in_the_published_form():
    assert CIRCLE.prompt == "cyan circle with brown background"


def test_one_generator_state_gives_one_scene():
    assert scenes(20, hand_drawn=0.5) == scenes(20, hand_drawn=0.5)


def test_training_scenes_are_never_held_out_and_test_scenes_always_are():
    def rule(scene):
        return is_held_out(scene.fill, scene.shape, scene.background)

    assert not any(map(rule, scenes(500)))
    assert all(map(rule, scenes(200, held_out=True)))
    assert {rule(scene) for scene in scenes(500, held_out=None)} == {True, False}


def test_the_rule_holds_out_one_combination_in_twenty_of_every_shape_and_never_changes():
    names = list(COLOURS)
    for shape in SHAPES:
        share = np.mean([is_held_out(a, shape, b) for a in names for b in names])
        assert share == pytest.approx(1 / HELD_OUT_ONE_IN, rel=0.15)  # 19,321 draws: five standard deviations
    assert (
        is_held_out("cyan", "circle", "brown") is False
    )  # the example of the documentation can be trained on


def test_fill_and_background_always_differ_clearly():
    assert all(differ_clearly(scene.fill, scene.background) for scene in scenes(500))


def test_only_the_asked_shapes_appear_and_all_of_them_do():
    assert {scene.shape for scene in scenes(300)} == set(SHAPES)
    assert {scene.shape for scene in scenes(50, shapes=("circle",))} == {"circle"}


def test_hand_drawn_is_the_probability_of_a_wobble():
    assert not any(scene.wobble or scene.gaps for scene in scenes(100))
    assert all(scene.wobble > 0 for scene in scenes(100, hand_drawn=1.0))
    assert any(scene.gaps for scene in scenes(100, hand_drawn=1.0))


def test_line_widths_stay_in_their_range():
    assert all(WIDTH_RANGE[0] <= scene.width <= WIDTH_RANGE[1] for scene in scenes(100))
    assert {round(scene.width, 6) for scene in scenes(20, widths=(3.0, 3.0))} == {3.0}


@pytest.mark.parametrize("size", [64, 101, 128])
def test_the_shape_lies_inside_the_picture_even_when_the_hand_shakes(size):
    for scene in scenes(60, hand_drawn=1.0):
        _, _, mask = render(scene, size)
        assert mask.any()
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


def test_one_scene_gives_the_same_bytes_each_time():
    for first, second in zip(render(CIRCLE, 96), render(CIRCLE, 96), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_target_has_the_named_colours_away_from_the_edge(shape):
    scene = replace(CIRCLE, shape=shape, radius=0.35)
    source, target, mask = render(scene, 128)
    assert source.shape == target.shape == (128, 128, 3)
    assert source.dtype == target.dtype == np.uint8
    kernel = np.ones((7, 7), np.uint8)  # the tip of a heart is thinner than a pixel for three pixels
    inside, outside = (cv2.erode(part.astype(np.uint8), kernel) > 0 for part in (mask, ~mask))
    assert (target[inside] == COLOURS["cyan"]).all()
    assert (target[outside] == COLOURS["brown"]).all()


@pytest.mark.parametrize("size", [32, 128, 512])
def test_a_circle_covers_its_area_at_every_size(size):
    _, _, mask = render(replace(CIRCLE, radius=0.3), size)
    assert mask.mean() == pytest.approx(np.pi * 0.3**2, rel=2 / size)  # a fraction of the edge's pixels


def test_the_ring_is_hollow():
    _, _, mask = render(replace(CIRCLE, shape="ring", radius=0.4), 128)
    assert not mask[64, 64]
    assert mask[64, 64 + 40]


def test_the_outline_runs_along_the_edge_of_the_fill():
    for scene in scenes(20, hand_drawn=1.0):
        source, _, mask = render(replace(scene, gaps=()), 256)
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        near = cv2.dilate(source[..., 0], np.ones((3, 3), np.uint8)) > 0
        assert (near | ~edge).mean() > 0.999  # corners are rounded by the line's own width


@pytest.mark.parametrize("size", [64, 128, 512])
def test_the_thinnest_line_can_still_be_seen(size):
    source, _, _ = render(replace(CIRCLE, width=1.0), size)
    across = source[size // 2, :, 0].astype(int)
    assert across.max() > 100
    assert across[: size // 2].sum() >= 200  # about one white pixel on each side, wherever it falls


def test_a_line_grows_by_the_pixels_that_its_width_grows_and_leaves_the_target_alone():
    thin, thick = (render(replace(CIRCLE, width=width), 128) for width in (4, 16))
    grown = (thick[0].sum(dtype=float) - thin[0].sum()) / (255 * 3)
    length = 2 * np.pi * CIRCLE.radius * 128
    assert grown == pytest.approx((16 - 4) * 128 / 512 * length, rel=0.02)
    np.testing.assert_array_equal(thin[1], thick[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_gaps_take_their_share_of_the_line_and_leave_the_target_alone(shape):
    scene = replace(CIRCLE, shape=shape, radius=0.4, width=2.0)
    whole, open_ = render(scene, 256), render(replace(scene, gaps=GAPS), 256)
    missing = 1 - open_[0].sum() / whole[0].sum()
    share = 0.06 if shape == "ring" else 0.12  # each circle of the ring gets one of the two gaps
    assert missing == pytest.approx(
        share, abs=0.03
    )  # a gap ends at the nearest point, lines end in round caps
    assert not (open_[0].astype(int) > whole[0]).any()
    np.testing.assert_array_equal(whole[1], open_[1])


def test_a_gap_over_the_whole_ring_erases_it():
    source, _, mask = render(replace(CIRCLE, gaps=((0.0, 1.0),)), 64)
    assert not source.any()
    assert mask.any()


def test_wobble_changes_the_fill_with_the_outline_and_only_a_little():
    _, _, exact = render(CIRCLE, 128)
    _, _, shaky = render(replace(CIRCLE, wobble=1.0, wobble_seed=3), 128)
    iou = (exact & shaky).sum() / (exact | shaky).sum()
    assert 0.7 < iou < 0.99


def test_sizes_show_the_same_picture():
    scene = replace(CIRCLE, shape="star", angle=0.2, wobble=0.5)
    small, large = render(scene, 64)[1], render(scene, 256)[1]
    shrunk = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - small).mean() < 1
