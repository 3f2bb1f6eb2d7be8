"""The demo as people use it, in Chromium: they draw, say what it shall be, stop it, come back."""

import cv2
import numpy as np
import pytest

from app.words import KOREAN
from eval.control import colour_error, filled_mask, mask_iou
from scenes.colours import COLOURS
from tests.app.drawing_hand import draw_circle, draw_with_finger, points_of_circle
from tests.app.page_checks import FAINT_TEXTS, NAMELESS, STICKS_OUT
from tests.app.visiting import PHONE, PROMPT, ask, canvas_of, drawing_sent, fetched, generate, idle, tabs_of

LEAST_CONTRAST = 4.5  # WCAG 2, level AA
MAX_TINT = 25  # of 255, the bar of `eval.fill50k`


@pytest.fixture
def jobs(served, monkeypatch):
    """Every job that the worker gets, each with the step at which it was told to stop."""
    seen, add = [], served.worker.add

    def recorded(job):
        cancel = job.cancel

        def stopped():
            if not job.cancelled:
                seen.append((job, job.progress.step))
            cancel()

        monkeypatch.setattr(job, "cancel", stopped)
        return add(job)

    monkeypatch.setattr(served.worker, "add", recorded)
    return seen


def test_a_circle_drawn_with_the_mouse_is_filled_with_the_prompts_colours(visit):
    page = visit()
    draw_circle(page, canvas_of(page), radius=0.3)
    addresses = generate(page)
    _, image = fetched(page, addresses[-1])
    side = len(image)
    drawn = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), round(0.3 * side), 1, -1) > 0
    cyan, brown = COLOURS["cyan"], COLOURS["brown"]
    mask = filled_mask(image, cyan, brown)
    assert mask_iou(mask, drawn) > 0.9
    assert colour_error(image, mask, cyan).max() < MAX_TINT
    assert colour_error(image, ~mask, brown).max() < MAX_TINT
    assert not page.evaluate(NAMELESS)


def test_the_click_takes_the_last_stroke_along_and_undo_takes_it_back(visit):
    page = visit()
    page.fill("#prompt textarea", PROMPT)
    draw_circle(page, canvas_of(page), radius=0.3)
    outline = drawing_sent(page)
    page.click("#unit1-canvas [data-text=Fill]")
    page.click("#unit1-canvas [data-text=Red]")
    canvas_of(page).click()
    filled = drawing_sent(page)
    canvas_of(page).focus()
    page.keyboard.press("Control+z")
    assert (filled[250:260, 250:260] == [0xE5, 0x39, 0x35]).all()
    assert np.array_equal(drawing_sent(page), outline)


def test_cancel_stops_within_two_steps(visit, served, jobs):
    page = visit()
    ask(page, steps=500)
    page.click("#generate")
    page.wait_for_function("() => /step [3-9]/.test(document.querySelector('#status').innerText)")
    page.click("#cancel")
    assert idle(served)
    (job, step), *_ = jobs
    assert job.progress.steps == 500
    assert 3 <= step <= job.progress.step <= step + 2
    page.wait_for_function("() => /stopped/.test(document.querySelector('#status').innerText)")
    page.fill("#steps input[type=number]", "2")
    page.press("#steps input[type=number]", "Tab")
    assert len(generate(page)) == 2  # and the next one is served


def test_leaving_the_page_stops_what_runs_for_it(visit, served, jobs):
    page = visit()
    ask(page, steps=500)
    page.click("#generate")
    page.wait_for_function("() => /step /.test(document.querySelector('#status').innerText)")
    page.reload()
    assert idle(served)
    assert jobs
    page.wait_for_selector("#unit1-canvas canvas")
    draw_circle(page, canvas_of(page))
    assert len(generate(page)) == 2


def test_an_empty_canvas_is_said_in_one_sentence(visit):
    for locale, words in (("en-US", "draw"), ("ko-KR", "그리")):
        page = visit(locale=locale)
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.wait_for_function(
            "(words) => document.querySelector('#status').innerText.includes(words)", arg=words
        )
        assert "Traceback" not in page.inner_text("body")


def test_the_page_speaks_the_browsers_language(visit):
    for locale in ("en-US", "ko-KR"):
        page = visit(locale=locale)
        words = {
            english: (KOREAN[english] if locale == "ko-KR" else english) for english in ("Generate", "Cancel")
        }
        assert [page.inner_text(f"#{one.lower()}") for one in words] == list(words.values())
        label = canvas_of(page).get_attribute("aria-label")
        assert label.startswith(KOREAN["Drawing"] if locale == "ko-KR" else "Drawing")
        assert "__i18n__" not in page.inner_text("body")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_and_everything_has_a_name(visit, scheme):
    page = visit(color_scheme=scheme)
    for tab in tabs_of(page):
        tab.click()
        page.wait_for_timeout(300)
        assert page.evaluate(FAINT_TEXTS, LEAST_CONTRAST) == []
        assert page.evaluate(NAMELESS) == []


def test_a_phone_is_wide_enough_and_a_finger_can_draw(visit):
    page = visit(**PHONE)
    for tab in reversed(tabs_of(page)):
        tab.click()
        page.wait_for_timeout(300)
        assert page.evaluate(STICKS_OUT) == []
    box = canvas_of(page).bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    canvas_of(page).scroll_into_view_if_needed()
    draw_with_finger(page, points_of_circle(canvas_of(page).bounding_box(), (0.5, 0.5), 0.3))
    _, image = fetched(page, generate(page)[-1])
    middle = len(image) // 2
    assert np.abs(image[middle, middle].astype(int) - COLOURS["cyan"]).max() < 2 * MAX_TINT
    assert page.evaluate(STICKS_OUT) == []
    page.wait_for_function(
        "() => document.querySelector('#results').getBoundingClientRect().top < innerHeight / 2"
    )


def test_the_tab_key_goes_from_the_prompt_to_the_button(visit):
    page = visit()
    page.focus("#prompt textarea")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id]').id"))
    assert "generate" in reached[:3]


def test_visitors_see_their_own_pictures_only(visit):
    one, two = visit(), visit()
    draw_circle(one, canvas_of(one))
    assert len(generate(one)) == 2
    assert two.locator("#gallery img").count() == 0
    assert two.input_value("#prompt textarea") == ""
