"""How the model of things is measured: intervals, lines, colours, drawings and the judge."""

import json

import cv2
import numpy as np
import pytest
import torch

from cldm.recognizer import Judge, load_net, look
from eval.thing_scores import Share, colours_named, lines_followed, load_doodles, save_grid
from eval.things import main, sketched_scenes, wanted_words
from scenes.things.art import Art
from scenes.things.palette import PALETTE
from scenes.things.scene import random_scene, render
from scenes.things.words import held_out_styles, is_held_out
from tests.small_art import small_art
from trainer.tiny.recognizer import save


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_intervals_are_wilsons(hits, n, low, high):
    assert Share("", hits, n).interval() == pytest.approx((low, high), abs=5e-4)


def test_a_row_says_whether_its_floor_is_passed():
    assert "MISSED" in str(Share("words", 4, 10, 0.5, 0.8))
    assert "passed" in str(Share("words", 5, 10, 0.5, 0.8))
    assert "floor" not in str(Share("words", 5, 10))


def test_every_word_comes_before_any_comes_twice():
    names = wanted_words(7, np.random.default_rng(0), ["a", "b", "c"])
    assert sorted(names[:3]) == sorted(names[3:6]) == ["a", "b", "c"]


def square(shift=0):
    page = np.full((128, 128, 3), 255, np.uint8)
    page[30 + shift : 90 + shift, 30 + shift : 90 + shift] = (200, 30, 30)
    return page


def outline(shift=0):
    drawing = np.zeros((128, 128), np.uint8)
    cv2.rectangle(drawing, (30 + shift, 30 + shift), (89 + shift, 89 + shift), 255, 1)
    return drawing


def test_lines_are_followed_within_three_pixels():
    assert lines_followed([square()], [outline()])[0] > 0.99
    assert lines_followed([square(2)], [outline()])[0] > 0.99
    assert lines_followed([square(20)], [outline()])[0] < 0.3
    assert lines_followed([np.full((128, 128, 3), 9, np.uint8)], [outline()])[0] == 0


def test_true_pictures_have_the_colours_named_and_others_not():
    art = Art(small_art(), held_out=None)
    scenes = [random_scene(np.random.default_rng(i), art, alone=True) for i in range(40)]
    truth = [render(scene, 128)[0] for scene in scenes]
    things, backgrounds = colours_named(truth, scenes)
    assert things.mean() > 0.95
    assert backgrounds.all()
    magenta = [np.full((128, 128, 3), (255, 0, 255), np.uint8)] * len(scenes)
    said = [scene.said_background for scene in scenes]
    assert not colours_named(magenta, scenes)[1][said].any()


def test_sketches_are_of_held_out_styles_and_colours():
    names = list(held_out_styles())[:3]
    scenes, hints = sketched_scenes(6, Art(small_art(names), held_out=True), 0)
    for scene, hint in zip(scenes, hints, strict=True):
        (thing,) = scene.things
        assert thing.sprite.style == held_out_styles()[thing.sprite.word]
        assert thing.colour is None or is_held_out(thing.sprite.word, thing.colour)
        assert hint.shape == (128, 128)
    assert all(colour in PALETTE for colour in {scene.background for scene in scenes})


def test_drawings_fill_the_page_and_unknown_words_are_left_out(tmp_path):
    rows = [
        {"word": "cat", "strokes": [[[0, 255, 255], [10, 10, 60]], [[5, 6], [20, 30]]]},
        {"word": "The Eiffel Tower", "strokes": [[[0, 1], [0, 1]]]},
    ]
    (tmp_path / "pack.ndjson").write_text("\n".join(map(json.dumps, rows)))
    (doodle,) = load_doodles(tmp_path, {"cat"})
    page = doodle.draw(100)
    xs = np.nonzero(page.any(axis=0))[0]
    assert xs.min() == pytest.approx(10, abs=4)
    assert xs.max() == pytest.approx(90, abs=4)


def test_missing_drawings_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="name their folder by --doodles"):
        load_doodles(tmp_path, {"cat"})


def test_a_saved_judge_names_the_same(tmp_path):
    torch.manual_seed(0)
    judge = Judge(("cat", "dog", "house")).eval()
    again = load_net(Judge, save(judge, tmp_path / "judge.safetensors"))
    images = [square(shift) for shift in (0, 10, 30)]
    assert again.words == judge.words
    assert [order[0] for order in again.order(images)] == [order[0] for order in judge.order(images)]
    assert all(sorted(order) == sorted(judge.words) for order in judge.order(images))
    assert look(images[0]).shape == (3, 64, 64)


def test_a_missing_judge_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m trainer.tiny.recognizer makes it"):
        load_net(Judge, tmp_path / "none.safetensors")


def test_a_grid_has_every_tile(tmp_path):
    save_grid(tmp_path / "new" / "grid.png", [square()] * 5, 3)
    assert cv2.imread(str(tmp_path / "new" / "grid.png")).shape == (256, 384, 3)


def test_help_answers(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "models/things.yaml" in capsys.readouterr().out
