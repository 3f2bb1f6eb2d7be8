"""The demo as people use it, in Chromium: one server with the tiny model for all tests."""

import json
import re
import time
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from app.canvas import decode_drawing
from app.serve_flags import PageFlags, ServeFlags
from app.server import running
from app.words import KOREAN
from eval.control import colour_error, filled_mask, mask_iou
from scenes.colours import COLOURS
from tests.app.drawing_hand import draw_circle, draw_with_finger, points_of_circle
from tests.app.page_checks import FAINT_TEXTS, NAMELESS, STICKS_OUT

PROMPT = "cyan circle with brown background"
LEAST_CONTRAST = 4.5  # WCAG 2, level AA
MAX_TINT = 25  # of 255, the bar of `eval.fill50k`
PATIENCE = 60_000  # milliseconds: a picture takes two seconds, on a busy machine more
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def server():
    with running(ServeFlags(page=PageFlags(port=0))) as started:
        yield started


@pytest.fixture
def visit(server, browser):
    """Opens the page as one visitor or several; at the end, no script failed and no other host was asked."""
    contexts, errors, hosts = [], [], set()

    def opened(**options):
        contexts.append(browser.new_context(**(DESKTOP | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda asked: hosts.update(re.findall(r"^(?:https?|wss?)://([^/:]+)", asked.url)))
        page.goto(server.url)
        page.wait_for_selector("#unit1-canvas canvas")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors
    assert hosts <= {"127.0.0.1"}


def generate(page, prompt=PROMPT):
    """Press the button and wait: the pictures' addresses, the control map first."""
    page.fill("#prompt textarea", prompt)
    page.click("#generate")
    return finished(page)


def finished(page, count=2):
    pictures = page.locator("#gallery .grid-wrap img")
    pictures.nth(count - 1).wait_for()
    page.wait_for_function("() => /\\d s /.test(document.querySelector('#status').innerText)")
    return pictures.evaluate_all("all => all.map((one) => one.src)")


def fetched(page, address):
    """A picture's bytes and its pixels, uint8 [H W 3]."""
    data = page.request.get(address).body()
    return data, np.array(Image.open(BytesIO(data)).convert("RGB"))


def drawing_sent(page):
    """What the click on Generate takes along of the first canvas; what it asks for is stopped."""
    with page.expect_request("**/queue/join*") as asked:
        page.click("#generate")
    page.click("#cancel")
    page.wait_for_function("() => /stopped/.test(document.querySelector('#status').innerText)")
    values = json.loads(asked.value.post_data)["data"]
    return decode_drawing(next(one for one in values if isinstance(one, str) and one.startswith("data:")))


def canvas_of(page, name="unit1-canvas"):
    return page.locator(f"#{name} canvas")


@pytest.fixture
def jobs(server, monkeypatch):
    """Every job that the worker gets, each with the step at which it was told to stop."""
    seen, add = [], server.worker.add

    def recorded(job):
        cancel = job.cancel

        def stopped():
            if not job.cancelled:
                seen.append((job, job.progress.step))
            cancel()

        monkeypatch.setattr(job, "cancel", stopped)
        return add(job)

    monkeypatch.setattr(server.worker, "add", recorded)
    return seen


def idle(server, seconds=20):
    end = time.monotonic() + seconds
    while not server.worker.idle and time.monotonic() < end:
        time.sleep(0.02)
    return server.worker.idle


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


def test_cancel_stops_within_two_steps(visit, server, jobs):
    page = visit()
    draw_circle(page, canvas_of(page))
    page.fill("#prompt textarea", PROMPT)
    page.fill("#steps input[type=number]", "500")
    page.press("#steps input[type=number]", "Tab")
    page.click("#generate")
    page.wait_for_function("() => /step [3-9]/.test(document.querySelector('#status').innerText)")
    page.click("#cancel")
    assert idle(server)
    (job, step), *_ = jobs
    assert job.progress.steps == 500
    assert 3 <= step <= job.progress.step <= step + 2
    page.fill("#steps input[type=number]", "2")
    assert len(generate(page)) == 2  # and the next one is served


def test_leaving_the_page_stops_what_runs_for_it(visit, server, jobs):
    page = visit()
    draw_circle(page, canvas_of(page))
    page.fill("#prompt textarea", PROMPT)
    page.fill("#steps input[type=number]", "500")
    page.press("#steps input[type=number]", "Tab")
    page.click("#generate")
    page.wait_for_function("() => /step /.test(document.querySelector('#status').innerText)")
    page.reload()
    assert idle(server)
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


def tabs_of(page):
    return page.locator("#tabs [role=tab]:visible").all()


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
    page.fill("#prompt textarea", PROMPT)
    page.tap("#generate")
    _, image = fetched(page, finished(page)[-1])
    middle = len(image) // 2
    assert np.abs(image[middle, middle].astype(int) - COLOURS["cyan"]).max() < 2 * MAX_TINT
    assert page.evaluate(STICKS_OUT) == []


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
