"""The canvas as a component: what it sends becomes pixels or one sentence, and each of its words is known."""

import json
import re

import numpy as np
import pytest

from app.canvas import decode_drawing, drawing_canvas, show_photo_js
from app.data_url import png_data_url
from app.words import LABELS, STATIC

SCRIPT = (STATIC / "canvas.js").read_text("utf-8")
MAX_LINES = 300


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_canvas_is_no_drawing(value):
    assert decode_drawing(value) is None


@pytest.mark.parametrize("channels", [3, 4])
def test_a_drawing_has_three_channels(channels):
    image = np.full((16, 24, channels), 7, np.uint8)
    assert np.array_equal(decode_drawing(png_data_url(image)), image[:, :, :3])


@pytest.mark.parametrize("value", [[], {}, 0, 1.5, True, "x", "/etc/passwd", {"path": "/etc/passwd"}])
def test_what_no_canvas_sends_is_one_sentence(value):
    with pytest.raises(ValueError, match="the mask is no picture"):
        decode_drawing(value, "the mask")


def test_the_script_has_no_build_step_and_fits_on_a_few_screens():
    assert len(SCRIPT.splitlines()) <= MAX_LINES
    assert not re.search(r"\b(import|require)\b *[({'\"]", SCRIPT)
    assert "://" not in SCRIPT


def test_every_word_of_the_script_has_a_korean_one():
    called = re.findall(r'said\("([^"]+)"\)', SCRIPT)
    helped = re.findall(r'HELP = "([^"]+)"', SCRIPT)
    table = re.findall(r'(?:"([\w ]+)"|\b([A-Z]\w+)): "#', SCRIPT)
    buttons = re.findall(r'\w+: \["([\w ]+)", "M', SCRIPT)
    marked = re.findall(r'\}, "([\w ]+)"(?:, "\w+")?\);', SCRIPT)
    words = {*called, *helped, *(a or b for a, b in table), *buttons, *marked, "Width"}
    assert len(table) == 18
    assert len(words) > 30
    assert words <= LABELS["canvas"].keys()


def test_gradios_templates_find_nothing_of_theirs_in_the_style():
    style = (STATIC / "canvas.css").read_text("utf-8")
    assert not re.search(r"[`\\]|\$\{|\{\{", style)


def test_canvases_share_one_script_and_differ_in_their_place():
    one, two = (drawing_canvas("Drawing", elem_id=name, mode="mask", size=(64, 32)) for name in ("a", "b"))
    assert one.head == two.head
    assert [canvas.props["mount"] for canvas in (one, two)] == ["a", "b"]
    json.dumps(one.get_config()["props"])


def test_a_photograph_is_shown_by_the_id_alone():
    assert '"mask-\\"1"' in show_photo_js('mask-"1')
