"""Pictures that were made here, read again: all they say is checked, what they were drawn from is found."""

import json
from dataclasses import replace

import numpy as np
import pytest

from app.data_url import png_data_url
from app.drawing import Drawn
from app.form import DRAWING, EXAMPLE, UPLOAD
from app.inputs import Inputs, drawn, example, uploaded
from app.outputs import DRAWINGS, MAX_DRAWINGS, Album, provenance_of
from app.provenance import Provenance
from app.stored import find_picture, read_stored
from cldm.request import ControlInput, Request
from ldm.image import read_png_text, write_png

IMAGE = np.full((64, 64, 3), 9, np.uint8)
REQUEST = Request("red star", controls=(ControlInput("canny"),), seed=4)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def sketch():
    lines = np.full((32, 32, 3), 255, np.uint8)
    lines[8:20, 10:12] = 0
    return drawn(png_data_url(lines), "drawing1")


def album_of(folder, *images, **more):
    inputs = Inputs(images, **more)
    made = Drawn("tiny", Provenance(), maps=[IMAGE], images=[IMAGE], requests=[REQUEST])
    return Album(folder, inputs).update(made)


def test_maps_come_first_and_pictures_carry_their_request(folder, sketch):
    files = album_of(folder, sketch)
    assert [caption for _, caption in files] == ["map 1", "4"]
    stored = read_stored(files[1][0], folder)
    assert stored.request == REQUEST
    assert stored.source.image == ("drawing1.png",)


def test_what_is_new_is_added_and_what_is_there_stays(folder, sketch):
    album = Album(folder, Inputs((sketch,)))
    made = Drawn("tiny", Provenance(), maps=[IMAGE], images=[IMAGE], requests=[REQUEST])
    before = album.update(made)
    made.images.append(IMAGE)
    made.requests.append(replace(REQUEST, seed=5))
    assert album.update(made)[:2] == before
    assert [caption for _, caption in album.update(made)] == ["map 1", "4", "5"]


def test_a_drawing_comes_back_out_of_its_picture(folder, sketch):
    stored = read_stored(album_of(folder, sketch)[1][0], folder)
    found = find_picture(stored, "drawing1.png", None, folder)
    assert (found.source, found.value, found.missing) == (DRAWING, sketch.drawing, "")


def test_an_example_is_known_again(folder):
    stored = read_stored(album_of(folder, example("star"))[1][0], folder)
    found = find_picture(stored, "star.png", None, folder)
    assert (found.source, found.value) == (EXAMPLE, "star")


def test_a_photograph_is_not_inside_but_known_when_it_is_there(folder):
    photo = write_png(folder / "photo.png", IMAGE)
    path = album_of(folder, uploaded(str(photo), folder))[1][0]
    assert json.loads(read_png_text(path)[DRAWINGS]) == {}
    stored = read_stored(path, folder)
    assert find_picture(stored, "photo.png", str(photo), folder).kept
    other = write_png(folder / "other.png", IMAGE + 1)
    for current in (None, str(other), "/etc/passwd"):
        found = find_picture(stored, "photo.png", current, folder)
        assert (found.source, found.missing, found.kept) == (UPLOAD, "photo.png", False)


def test_a_drawing_too_large_to_carry_is_left_out(folder, sketch):
    huge = replace(sketch, drawing="x" * (MAX_DRAWINGS + 1))
    assert DRAWINGS not in read_png_text(album_of(folder, huge)[1][0])


def test_start_picture_and_mask_are_named(sketch):
    photo = replace(sketch, name="photo.png", digest="1" * 64, drawing="")
    source = provenance_of(Inputs((sketch,), photo, replace(sketch, name="mask.png")), Provenance())
    assert (source.init, source.mask) == ("photo.png", "mask.png")
    assert set(source.digests) == {"drawing1.png", "photo.png", "mask.png"}


GOOD = {"request": REQUEST.to_json(), "source": Provenance().to_json()}


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"request": GOOD["request"]},
        {**GOOD, "request": "{"},
        {**GOOD, "request": "[" * 100_000},
        {**GOOD, "request": "5"},
        {**GOOD, "request": json.dumps({"prompt": "star", "steps": "many"})},
        {**GOOD, "request": json.dumps({"prompt": "star", "controls": [{}] * 1000})},
        {**GOOD, "source": "[]"},
        {**GOOD, "source": json.dumps({"image": [1, 2]})},
        {**GOOD, "source": json.dumps({"digests": 5})},
        {**GOOD, "source": json.dumps({"who": "me"})},
        {**GOOD, DRAWINGS: "[1]"},
        {**GOOD, DRAWINGS: "{"},
    ],
    ids=str,
)
def test_nonsense_in_a_picture_is_said_in_a_sentence(folder, text):
    path = write_png(folder / "a.png", IMAGE, text)
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+") as caught:
        read_stored(str(path), folder)
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)


def test_a_lying_drawing_is_asked_for_again(folder, sketch):
    source = replace(Provenance(), image=("d.png",), digests={"d.png": "0" * 64})
    text = {**GOOD, "source": source.to_json()}
    for drawing in (sketch.drawing, "no picture", 5):
        path = write_png(folder / "a.png", IMAGE, {**text, DRAWINGS: json.dumps({"d.png": drawing})})
        found = find_picture(read_stored(str(path), folder), "d.png", None, folder)
        assert found.missing == "d.png"
