"""The other tabs and ways of the demo in Chromium: restore, use again, compare, annotate, switch language."""

import re

import cv2
import numpy as np

from app.canvas import decode_drawing
from app.words import KOREAN
from tests.app.drawing_hand import draw_circle
from tests.app.page_checks import FAINT_TEXTS, NAMELESS, STICKS_OUT
from tests.app.test_browser import LEAST_CONTRAST
from tests.app.visiting import PROMPT, ask, canvas_of, fetched, generate


def test_a_picture_that_is_dropped_sets_everything_as_it_was(visit):
    page = visit()
    draw_circle(page, canvas_of(page), radius=0.2)
    page.fill("#seed input", "7")
    page.press("#seed input", "Tab")
    made, image = fetched(page, generate(page)[-1])
    other = visit()
    other.set_input_files("#restore input", {"name": "a.png", "mimeType": "image/png", "buffer": made})
    other.wait_for_function("(text) => document.querySelector('#prompt textarea').value === text", arg=PROMPT)
    assert other.input_value("#seed input") == "7"
    _, again = fetched(other, generate(other)[-1])
    assert np.array_equal(again, image)


def test_a_picture_made_here_is_the_next_input(visit):
    page = visit()
    draw_circle(page, canvas_of(page))
    made = generate(page)
    page.click("#use-as-input")
    page.locator("#unit1-upload img").wait_for()
    assert canvas_of(page).is_hidden()
    assert len(generate(page)) == len(made)
    page.click("#unit1-source label:nth-of-type(2)")  # back to the canvas: the drawing is still there
    canvas_of(page).wait_for()
    assert page.evaluate("SketchCanvas.mounted.get('unit1-canvas').png()")


def test_a_start_picture_changes_only_where_the_mask_is_painted(visit):
    page = visit()
    draw_circle(page, canvas_of(page))
    _, before = fetched(page, generate(page)[-1])
    page.click("#use-as-start")
    page.locator("#init img").wait_for()
    draw_circle(page, canvas_of(page, "mask-canvas"), centre=(0.25, 0.25), radius=0.1)
    painted = page.evaluate("SketchCanvas.mounted.get('mask-canvas').png()")
    white = decode_drawing(painted)[..., 0] > 127
    _, after = fetched(page, generate(page, "magenta circle with lime background")[-1])
    side = len(after)
    near = cv2.resize(white.astype(np.uint8), (side, side), interpolation=cv2.INTER_AREA) > 0
    near = cv2.dilate(near.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert 0 < near.mean() < 0.2
    assert np.array_equal(after[~near], before[~near])
    assert not np.array_equal(after[near], before[near])


def test_compare_shows_what_models_cost_and_how_they_differ(visit):
    page = visit()
    ask(page, steps=4)
    page.click("#tab-compare-button")
    page.click("#compare-run")
    page.locator("#compare-table tbody tr").nth(2).wait_for()
    rows = [
        re.split(r"\s*\t\s*", row)
        for row in page.inner_text("#compare-table tbody").splitlines()
        if row.strip()
    ]
    assert [row[0] for row in rows] == ["tiny", "tiny-lite", "tiny-int8"]
    assert all(float(row[1]) > 0 for row in rows)
    page.locator("#compare-difference img").wait_for()
    assert page.locator("#compare-slider img").count() == 2
    assert page.evaluate(FAINT_TEXTS, LEAST_CONTRAST) == []
    assert page.evaluate(NAMELESS) == []


def test_annotate_shows_every_map_and_what_the_others_need(visit):
    page = visit()
    page.click("#tab-annotate-button")
    page.set_input_files("#annotate-input input[type=file]", "test_imgs/coin.png")
    page.locator("#annotate-input img").wait_for()
    page.click("#annotate-run")
    page.locator("#annotate-gallery .grid-wrap img").nth(4).wait_for()
    assert "canny" in page.inner_text("#annotate-gallery")
    assert page.evaluate(FAINT_TEXTS, LEAST_CONTRAST) == []
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(STICKS_OUT) == []


def test_the_settings_switch_the_language(visit):
    page = visit()
    page.click("footer .settings")
    page.get_by_role("combobox", name="Language").click()
    page.get_by_role("option", name="한국어").click()
    page.wait_for_function(
        "(word) => document.querySelector('#generate').innerText === word", arg=KOREAN["Generate"]
    )
    assert canvas_of(page).get_attribute("aria-label").startswith(KOREAN["Drawing"])


def test_a_detectors_sliders_speak_the_browsers_language(visit):
    page = visit(locale="ko-KR")
    assert KOREAN["whether lines are dark on light paper"] in page.inner_text("#tab-generate")
    page.get_by_role("combobox", name=KOREAN["Detector"]).first.click()
    page.get_by_role("option", name="xdog").click()
    page.wait_for_function(
        "(word) => document.querySelector('#tab-generate').innerText.includes(word)",
        arg=KOREAN["lower draws more"],
    )
    assert "__i18n__" not in page.inner_text("body")
