"""Pictures of the demo's page: each tab, in both languages, on a desktop and on a phone, after it was used.

    python -m app.screenshots --out outputs/screenshots

A server with the tiny model is started and ended. Needs the system's Chromium and `pip install playwright`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.serve_flags import PageFlags, ServeFlags
from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
LOCALES = {"en": "en-US", "ko": "ko-KR"}
WIDTHS = {1280: {}, 390: {"is_mobile": True, "has_touch": True}}  # a laptop, a phone
HEIGHT = 844
EXAMPLE = Path(__file__).parents[1] / "test_imgs/coin.png"
PROMPT = "cyan circle with brown background"
PATIENCE = 120_000  # milliseconds, of a busy machine
SETTLING = 600  # until what unfolds stands still
UPPER_PART = {
    "x": 0,
    "y": 0,
    "width": 1280,
    "height": 1330,
}  # of the first tab, where what matters is: for READMEs


@dataclass(frozen=True)
class ScreenshotFlags:
    """Where the pictures go."""

    out: Path = flag(Path("outputs/screenshots"), "a folder", metavar="DIR")


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, 2 with one sentence when something is wrong, 130 after Ctrl-C."""
    parser = Parser("python -m app.screenshots", __doc__)
    add_flags(parser, ScreenshotFlags)
    flags = read_flags(ScreenshotFlags, parser.parse_args(argv))
    return run_command(lambda: take_all(flags.out), stopped="stopped; some pictures are missing")


def take_all(out: Path) -> str:
    """Take every picture into the folder `out`; what was done, in one sentence."""
    from app.server import running

    program = find_chromium()
    with running(ServeFlags(page=PageFlags(port=0))) as server, chromium(program) as browser:
        out.mkdir(parents=True, exist_ok=True)
        taken = [
            path
            for language in LOCALES
            for width in WIDTHS
            for path in _take(browser, server.url, (language, width), out)
        ]
    return f"{out}: {len(taken)} pictures of {len(TABS)} tabs in {len(LOCALES)} languages"


def find_chromium() -> str:
    """The system's Chromium; ValueError in one sentence where it or playwright is missing."""
    program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        raise ValueError(f"no browser is installed: install {', '.join(CHROMIUMS[:-1])} or {CHROMIUMS[-1]}")
    if find_spec("playwright") is None:
        raise ValueError("playwright is not installed: pip install playwright")
    return program


@contextmanager
def chromium(program: str) -> Iterator[Any]:
    """A browser that nobody sees, run by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _take(browser: Any, url: str, kind: tuple[str, int], out: Path) -> list[Path]:
    language, width = kind
    options = {"viewport": {"width": width, "height": HEIGHT}, "locale": LOCALES[language]}
    page = browser.new_page(**options, **WIDTHS[width])
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_selector("#unit1-canvas canvas")
    paths = []
    for tab, use in TABS.items():
        page.click(f"#tab-{tab}-button")
        use(page)
        page.wait_for_timeout(SETTLING)
        page.evaluate("scrollTo(0, 0)")
        paths.append(out / f"{tab}-{language}-{width}.png")
        page.screenshot(path=paths[-1], full_page=True)
        if use is _generate and width == UPPER_PART["width"]:
            paths.append(out / f"demo-{language}.png")
            page.screenshot(path=paths[-1], full_page=True, clip=UPPER_PART)
    page.close()
    return paths


def _generate(page: Any) -> None:
    canvas = page.locator("#unit1-canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y, radius = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, 0.3 * box["width"]
    page.mouse.move(x + radius, y)
    page.mouse.down()
    for degrees in range(0, 370, 10):
        angle = math.radians(degrees)
        page.mouse.move(x + radius * math.cos(angle), y + radius * math.sin(angle))
    page.mouse.up()
    page.fill("#prompt textarea", PROMPT)
    page.click("#generate")
    page.locator("#gallery .grid-wrap img").nth(1).wait_for()
    page.wait_for_selector("#unit1-map img")
    page.wait_for_function("() => document.querySelector('#used-seed input, #used-seed textarea').value")
    page.locator("#gallery").scroll_into_view_if_needed()  # pictures load when they come into sight
    page.mouse.move(0, 0)


def _compare(page: Any) -> None:
    page.click("#compare-run")
    page.wait_for_selector("#compare-table table")


def _annotate(page: Any) -> None:
    page.set_input_files("#annotate-input input[type=file]", EXAMPLE)
    page.wait_for_selector("#annotate-input img")
    page.click("#annotate-run")
    page.locator("#annotate-gallery .grid-wrap img").nth(4).wait_for()


def _results(page: Any) -> None:
    page.wait_for_selector("#tab-results")


# How each tab is used before its picture is taken, by the name that its button's id carries.
TABS: dict[str, Callable[[Any], None]] = {
    "generate": _generate,
    "compare": _compare,
    "annotate": _annotate,
    "results": _results,
}


if __name__ == "__main__":
    raise SystemExit(main())
