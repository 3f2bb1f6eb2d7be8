"""A visitor of the demo's page: opens it in the browser, draws, presses Generate, looks at what comes."""

import json
import time
from io import BytesIO

import numpy as np
from PIL import Image

from app.canvas import decode_drawing
from tests.app.drawing_hand import draw_circle

PROMPT = "cyan circle with brown background"
PATIENCE = 60_000  # milliseconds: a picture takes two seconds, on a busy machine more
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


def shown(page):
    """The addresses of the gallery's pictures, control maps first."""
    return page.locator("#gallery .grid-wrap img").evaluate_all("all => all.map((one) => one.src)")


def generate(page, prompt=PROMPT, count=2):
    """Press the button and wait for `count` new pictures: their addresses."""
    page.fill("#prompt textarea", prompt)
    before = shown(page)
    page.click("#generate")
    page.wait_for_function(
        """([before, count]) => {
          const now = [...document.querySelectorAll("#gallery .grid-wrap img")].map((one) => one.src);
          const done = / s /.test(document.querySelector("#status").innerText);
          return done && now.length === count && !now.some((one) => before.includes(one));
        }""",
        arg=[before, count],
    )
    return shown(page)


def ask(page, steps):
    """A circle on the canvas, the usual prompt and so many steps; nothing is pressed yet."""
    draw_circle(page, canvas_of(page))
    page.fill("#prompt textarea", PROMPT)
    page.fill("#steps input[type=number]", str(steps))
    page.press("#steps input[type=number]", "Tab")


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


def tabs_of(page):
    return page.locator("#tabs [role=tab]:visible").all()


def idle(served, seconds=20):
    """Whether the worker has nothing to do, at the latest after some seconds."""
    end = time.monotonic() + seconds
    while not served.worker.idle and time.monotonic() < end:
        time.sleep(0.02)
    return served.worker.idle
