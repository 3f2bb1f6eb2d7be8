"""Scenes of things: what is said is what is drawn, and the lines lie on its edges."""

import cv2
import numpy as np
import pytest

from scenes.colours import contrast
from scenes.things.art import Art
from scenes.things.palette import PALETTE, repaint, unsaid_background
from scenes.things.scene import lines, random_scene, render
from scenes.things.sketch import EXACT, OTHER_MAPS, Hand, random_map, scribble
from scenes.things.strokes import anatomy, simplified
from scenes.things.words import held_out_styles, is_held_out
from tests.small_art import icon, small_art

ART = Art(small_art(), held_out=None)
SIDE = 128


def scenes(count, **how):
    return [random_scene(np.random.default_rng([3, i]), ART, **how) for i in range(count)]


def test_a_scene_depends_on_its_seed_alone():
    first, again = scenes(5), scenes(5)
    for one, other in zip(first, again, strict=True):
        assert one.prompt == other.prompt
        assert np.array_equal(render(one, SIDE)[0], render(other, SIDE)[0])


def test_the_prompt_says_every_colour_that_is_not_the_arts_own():
    for scene in scenes(60):
        for thing in scene.things:
            assert thing.colour is None or thing.colour in scene.prompt
        assert (scene.background in scene.prompt) >= scene.said_background


def test_the_background_is_the_one_named_and_the_thing_has_its_colour():
    for scene in scenes(40, alone=True):
        target, cover = render(scene, SIDE)
        assert tuple(target[cover == 0][0].tolist()) == PALETTE[scene.background]
        inside = target[cv2.erode(cover, np.ones((3, 3))) == 255]
        if scene.things[0].colour and len(inside):
            middle = tuple(np.median(inside, axis=0).tolist())
            assert contrast(middle, PALETTE[scene.things[0].colour]) < 40


def test_posed_things_are_upright_large_and_in_the_middle():
    for scene in scenes(30, posed=True):
        (thing,) = scene.things
        assert scene.posed
        assert thing.size >= 0.7
        assert abs(thing.angle) < 0.1
        assert all(0.4 < place < 0.6 for place in thing.centre)


def test_one_scene_in_five_has_two_things():
    counts = [len(scene.things) for scene in scenes(400)]
    assert 0.14 < counts.count(2) / 400 < 0.26
    assert {len(scene.things) for scene in scenes(50, alone=True)} == {1}


def test_held_out_colours_and_styles_are_never_drawn_for_training():
    held_out = held_out_styles()
    word = next(iter(held_out))
    sprites = small_art([word])
    training, kept = Art(sprites), Art(sprites, held_out=True)
    assert {one.style for one in kept.by_word[word]} == {held_out[word]}
    assert held_out[word] not in {one.style for one in training.by_word[word]}
    drawn = [thing for scene in scenes(200) for thing in scene.things if thing.colour]
    assert not any(is_held_out(thing.sprite.word, thing.colour) for thing in drawn)


def test_lines_lie_on_the_edges_of_the_picture():
    for scene in scenes(15, alone=True):
        edges = cv2.Canny(render(scene, SIDE)[1], 60, 120) > 0
        distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 5)
        outline = lines(scene.things[0])[0] * SIDE - 0.5
        inner = outline[((outline > 3) & (outline < SIDE - 4)).all(axis=1)]
        if len(inner):
            at = np.rint(inner).astype(int)
            assert np.median(distance[at[:, 1], at[:, 0]]) < 3


def test_a_disc_with_a_square_has_two_closed_lines():
    strokes = anatomy(icon()).strokes
    assert len(strokes) == 2
    for stroke in strokes:
        assert np.allclose(stroke[0], stroke[-1])
    assert np.ptp(strokes[0], axis=0) == pytest.approx(100 / 128, abs=0.03)


@pytest.mark.parametrize("closed", [True, False])
def test_simplifying_keeps_the_ends(closed):
    turn = np.linspace(0, 2 * np.pi if closed else np.pi, 60)
    line = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
    if closed:
        line[-1] = line[0]
    short = simplified(line, 0.05)
    assert len(short) < len(line)
    assert np.array_equal(short[[0, -1]], line[[0, -1]])


def test_an_exact_hand_draws_every_line_and_a_sparing_one_only_the_outline():
    scene = scenes(1, posed=True)[0]
    rng = np.random.default_rng(0)
    whole = scribble(rng, scene, SIDE, EXACT)
    sparing = scribble(rng, scene, SIDE, Hand(kept=0.0))
    assert (whole > 127).sum() > (sparing > 127).sum() > 0


@pytest.mark.parametrize("width", [1, 24])
def test_every_pen_leaves_a_line(width):
    scene = scenes(1, posed=True)[0]
    assert scribble(np.random.default_rng(0), scene, SIDE, Hand(width=width)).max() > 60


@pytest.mark.parametrize("draw", OTHER_MAPS)
def test_every_map_is_white_on_black(draw):
    drawn = draw(*render(scenes(1, posed=True)[0], SIDE))
    assert drawn.dtype == np.uint8
    assert drawn.shape == (SIDE, SIDE)
    assert drawn.max() == 255
    assert np.median(drawn[:8]) == 0


def test_maps_differ_from_one_time_to_the_next():
    scene = scenes(1, posed=True)[0]
    first, second = (random_map(np.random.default_rng(i), scene, SIDE) for i in (1, 2))
    assert not np.array_equal(first, second)


def test_repainting_turns_the_body_into_the_colour_and_keeps_light_and_dark():
    pixels = np.array([[30, 30, 30], [120, 120, 120], [240, 240, 240]], np.uint8)
    dark, body, light = repaint(pixels, 120.0, "blue").astype(int)
    assert tuple(body) == PALETTE["blue"]
    assert (dark < body).all()
    assert (light > body).all()


def test_white_things_stand_on_the_sky_when_no_background_is_said():
    assert unsaid_background((250, 250, 250)) == "sky blue"
    assert unsaid_background((200, 30, 30)) == "white"
