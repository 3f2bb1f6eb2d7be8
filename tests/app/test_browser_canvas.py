"""The drawing canvas as people use it, in a page of plain HTML: what is drawn is what comes out."""

import json

import numpy as np
import pytest

from app.canvas import decode_drawing
from app.words import LABELS, STATIC
from tests.app.drawing_hand import draw_circle, draw_line, draw_with_finger, draw_with_pen, points_of_circle

WORDS = LABELS["canvas"]
RED, BLUE, BLACK, WHITE = (0xE5, 0x39, 0x35), (0x1E, 0x66, 0xD0), (0, 0, 0), (255, 255, 255)
# A photograph of 300 x 200, made on the spot.
PHOTO = """() => {
  const page = Object.assign(document.createElement('canvas'), { width: 300, height: 200 });
  Object.assign(page.getContext('2d'), { fillStyle: 'green' }).fillRect(0, 0, 300, 200);
  return page.toDataURL();
}"""


@pytest.fixture(scope="module")
def context(browser):
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    yield made
    made.close()


@pytest.fixture
def page(context):
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    errors = []
    opened.on("pageerror", lambda error: errors.append(error))
    opened.set_content(
        "<!doctype html><body style='margin: 8px'><div id='one'></div><div id='two'></div></body>"
    )
    opened.add_style_tag(path=STATIC / "canvas.css")
    opened.add_script_tag(path=STATIC / "canvas.js")
    yield opened
    opened.close()
    assert not errors


def mount(page, options=None, where="one"):
    """A new canvas, window.one or window.two; its changes are counted."""
    page.evaluate(
        """([where, options]) => {
          window.changes = 0;
          const onchange = () => { window.changes += 1; };
          const all = { words: {}, ...options, onchange };
          window[where] = SketchCanvas.mount(document.getElementById(where), where, all);
        }""",
        [where, options or {}],
    )
    return page.locator(f"#{where} canvas")


def drawing(page, where="one"):
    return decode_drawing(page.evaluate(f"{where}.png()"))


def tool(page, name):
    page.click(f"#one [data-text='{name}']")


def is_colour(image, colour):
    return np.abs(image.astype(int) - colour).max(axis=2) <= 2


def test_a_line_is_where_the_mouse_went_and_nowhere_else(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    y, x = np.mgrid[:512, :512] + 0.5
    distance = np.abs(np.hypot(x - 256, y - 256) - 0.3 * 512)
    image = drawing(page)
    assert image.shape == (512, 512, 3)
    assert is_colour(image, BLACK)[distance < 1].mean() > 0.99
    assert is_colour(image, WHITE)[distance > 5].all()
    assert page.evaluate("changes") == 1


def test_undo_and_redo_give_the_same_pixels_again(page):
    canvas = mount(page)
    shown = [page.evaluate("one.png()")]
    for radius in (0.1, 0.2, 0.3):
        draw_circle(page, canvas, radius=radius)
        shown.append(page.evaluate("one.png()"))
    tool(page, "Fill")
    canvas.click(position={"x": 256, "y": 256})
    shown.append(page.evaluate("one.png()"))
    tool(page, "Clear all")
    shown.append(page.evaluate("one.png()"))
    assert shown[0] == shown[-1] == ""
    for k in reversed(range(5)):
        tool(page, "Undo")
        assert page.evaluate("one.png()") == shown[k]
    for k in range(1, 6):
        tool(page, "Redo")
        assert page.evaluate("one.png()") == shown[k]


def test_a_new_stroke_forgets_what_was_undone(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    tool(page, "Undo")
    assert page.locator("#one [data-text=Redo]").get_attribute("aria-disabled") == "false"
    draw_circle(page, canvas, radius=0.1)
    before = page.evaluate("one.png()")
    page.click("#one [data-text=Redo]", force=True)
    assert page.evaluate("one.png()") == before


def test_a_fill_stays_inside_its_line_and_leaves_no_pale_rim(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    tool(page, "Fill")
    tool(page, "Red")
    canvas.click(position={"x": 256, "y": 256})
    image = drawing(page)
    y, x = np.mgrid[:512, :512] + 0.5
    distance = np.hypot(x - 256, y - 256)
    assert is_colour(image, RED)[distance < 149].all()
    assert is_colour(image, WHITE)[distance > 159].all()
    inner = image[(distance > 146) & (distance < 153)]
    assert (inner[:, 1] <= RED[1] + 2).all()  # every pixel there is a blend of red and black
    tool(page, "Blue")
    canvas.click(position={"x": 256, "y": 256})
    assert is_colour(drawing(page), BLUE)[distance < 149].all()


def test_a_fill_of_the_paper_goes_to_every_corner(page):
    canvas = mount(page, {"width": 96, "height": 64})
    tool(page, "Fill")
    tool(page, "Blue")
    canvas.click(position={"x": 5, "y": 5})
    assert is_colour(drawing(page), BLUE).all()


def test_an_eraser_gives_the_paper_back(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    tool(page, "Eraser")
    page.click("#one [data-size='48']")
    draw_circle(page, canvas)
    assert is_colour(drawing(page), WHITE).all()
    tool(page, "Clear all")
    draw_circle(page, canvas)
    assert page.evaluate("one.png()") == ""  # an eraser alone draws nothing


@pytest.mark.parametrize("width", [3, 6, 12, 24, 48])
def test_a_pen_is_as_wide_as_its_button_says(page, width):
    canvas = mount(page)
    page.click(f"#one [data-size='{width}']")
    box = canvas.bounding_box()
    draw_line(page, [(box["x"] + x, box["y"] + 200.5) for x in (100, 200, 300, 400)])
    ink = 1 - drawing(page)[:, 250, 0] / 255
    assert ink.sum() == pytest.approx(width, abs=0.6)


def test_any_colour_of_the_palette_or_of_the_picker_draws(page):
    canvas = mount(page)
    box = canvas.bounding_box()
    colours = [
        *page.locator("#one [data-colour]").evaluate_all("all => all.map((node) => node.dataset.colour)"),
        "#123456",
    ]
    for k, colour in enumerate(colours):
        if k < 18:
            page.click(f"#one [data-colour='{colour}']")
        else:
            page.fill("#one input[type=color]", colour)
        draw_line(page, [(box["x"] + x, box["y"] + 20.5 + 24 * k) for x in (100, 200, 300)])
    image = drawing(page)
    assert len(colours) == 19
    wanted = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours]
    assert [image[20 + 24 * k, 200].tolist() for k in range(19)] == wanted


def test_a_tap_is_a_dot_and_the_other_buttons_of_a_mouse_draw_nothing(page):
    canvas = mount(page)
    canvas.click(position={"x": 100, "y": 100}, button="right")
    canvas.click(position={"x": 100, "y": 100}, button="middle")
    assert page.evaluate("one.png()") == ""
    canvas.click(position={"x": 100, "y": 100})
    dark = drawing(page)[:, :, 0] < 128
    assert 20 <= dark.sum() <= 40  # a circle 6 pixels wide has 28


def test_a_stroke_goes_on_outside_of_the_canvas_and_ends_there(page):
    canvas = mount(page)
    box = canvas.bounding_box()
    draw_line(
        page,
        [
            (box["x"] + 400, box["y"] + 300),
            (box["x"] + 700, box["y"] + 300),
            (box["x"] + 400, box["y"] + 100),
        ],
    )
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    (stroke,) = json.loads(page.evaluate("one.strokes()"))["strokes"]
    assert max(x for x, _, _ in stroke["points"]) > 512
    assert not (drawing(page)[:90] < 255).any()


def test_keys_choose_tools_and_take_back(page):
    canvas = mount(page)
    draw_circle(page, canvas)  # the canvas has the focus now
    one = page.evaluate("one.png()")
    draw_circle(page, canvas, radius=0.1)
    two = page.evaluate("one.png()")
    page.keyboard.press("Control+z")
    assert page.evaluate("one.png()") == one
    page.keyboard.press("Control+Shift+z")
    assert page.evaluate("one.png()") == two
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+y")
    assert page.evaluate("one.png()") == two
    for key, name in {"e": "eraser", "f": "fill", "p": "pen"}.items():
        page.keyboard.press(key)
        assert page.evaluate("one.tool") == name
    page.keyboard.press("]")
    page.keyboard.press("]")
    page.keyboard.press("[")
    assert page.evaluate("one.size") == 12
    page.keyboard.press("Delete")
    assert page.evaluate("one.png()") == ""


def test_a_mask_is_white_where_painted_whatever_lies_beneath(page):
    canvas = mount(page, {"mode": "mask"})
    assert not page.locator("#one .sketch-colours").count()
    page.evaluate("(url) => one.setPhoto(url)", page.evaluate(PHOTO))
    box = canvas.bounding_box()
    assert (round(box["width"]), round(box["height"])) == (512, 341)  # the photograph's aspect
    page.click("#one [data-size='48']")
    draw_line(page, [(box["x"] + x, box["y"] + 100.5) for x in (100, 200, 300)])
    mask = drawing(page)
    assert mask.shape == (341, 512, 3)
    assert (mask[80:120, 110:290] == 255).all()
    assert (mask[:70] == 0).all()
    assert (mask[130:] == 0).all()
    shown = mask.copy()
    page.evaluate("(url) => one.show(url)", page.evaluate("one.png()"))
    assert np.array_equal(drawing(page), shown)  # and what Python hands back is that mask again


def test_a_photograph_to_trace_is_seen_and_not_in_the_drawing(page):
    canvas = mount(page)
    page.evaluate("(url) => one.setPhoto(url)", page.evaluate(PHOTO))
    assert page.evaluate("one.png()") == ""
    draw_circle(page, canvas, radius=0.2)
    image = drawing(page)
    assert image.shape[:2] == (341, 512)
    assert (image[:, :, 0] == image[:, :, 1]).all()
    page.click("#one [data-text='Photo beneath']")  # pressed: it goes
    assert page.locator("#one .sketch-photo").is_hidden()


def test_a_file_that_is_no_picture_is_said_in_the_pages_language(page):
    mount(page, {"words": WORDS})
    page.set_input_files(
        "#one input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": b"hello"}
    )
    page.wait_for_selector("#one .sketch-status:not(:empty)")
    assert page.inner_text("#one .sketch-status") == WORDS["The browser cannot show this file as a picture."]
    assert page.locator("#one .sketch-photo").is_hidden()


def test_two_canvases_on_a_page_are_two_drawings(page):
    first, second = mount(page), mount(page, where="two")
    draw_circle(page, first)
    assert page.evaluate("two.png()") == ""
    draw_circle(page, second, radius=0.1)
    page.keyboard.press("Control+z")  # goes to the one drawn on last
    assert page.evaluate("two.png()") == ""
    assert page.evaluate("one.png()")


def test_a_page_that_makes_its_elements_anew_finds_drawing_and_history(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    drawn = page.evaluate("one.png()")
    page.evaluate("document.getElementById('one').outerHTML = '<div id=one></div>'")
    mount(page, {"words": WORDS})
    assert page.evaluate("one.png()") == drawn
    tool(page, "Undo")
    assert page.evaluate("one.png()") == ""


def test_a_picture_from_outside_is_shown_and_drawn_on(page):
    canvas = mount(page)
    draw_circle(page, canvas)
    drawn = page.evaluate("one.png()")
    mount(page, where="two")
    page.evaluate("(url) => two.show(url)", drawn)
    assert np.array_equal(drawing(page, "two"), drawing(page))
    assert page.evaluate("changes") == 0  # nobody is told of what came from outside
    page.evaluate("two.show('')")
    assert page.evaluate("two.png()") == ""


def test_everything_has_a_name_in_the_pages_language(page):
    mount(page, {"label": "그림", "words": WORDS})
    nodes = page.locator("#one button, #one input, #one canvas, #one [role]")
    names = nodes.evaluate_all(
        "all => all.filter((n) => n.role !== 'status').map((n) => n.getAttribute('aria-label'))"
    )
    assert len(names) > 30
    assert all(any("가" <= letter <= "힣" for letter in name or "") for name in names)
    pressed = page.locator("#one [aria-pressed=true]").evaluate_all("all => all.map((n) => n.title)")
    assert pressed == ["펜", "굵기 6", "검정"]


def test_a_finger_draws_and_does_not_scroll(browser):
    context = browser.new_context(viewport={"width": 390, "height": 700}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_content(
        "<!doctype html><meta name=viewport content='width=device-width'>"
        "<div id=one></div><p style='height: 2000px'>"
    )
    page.add_style_tag(path=STATIC / "canvas.css")
    page.add_script_tag(path=STATIC / "canvas.js")
    canvas = mount(page)
    box = canvas.bounding_box()
    assert box["x"] + box["width"] <= 390
    draw_with_finger(page, points_of_circle(box, (0.5, 0.5), 0.3))
    assert (drawing(page)[:, :, 0] < 128).sum() > 2000
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_pressure_of_a_pen_makes_the_line_wider_where_that_is_wanted(page):
    canvas = mount(page)
    button = page.locator("#one [data-text='Pen pressure']")
    assert button.is_hidden()
    line, pressures = [[x, 0.5] for x in (0.1, 0.3, 0.5, 0.7, 0.9)], [0.1, 0.2, 0.5, 0.8, 1.0]
    draw_with_pen(canvas, line, pressures)
    button.click()
    draw_with_pen(canvas, line, pressures)
    plain, pressed = (
        [width for _, _, width in stroke["points"]]
        for stroke in json.loads(page.evaluate("one.strokes()"))["strokes"]
    )
    assert set(plain) == {6}
    assert pressed == sorted(pressed)
    assert pressed[0] < 3 < 5.9 < pressed[-1]
