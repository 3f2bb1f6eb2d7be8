"""A browser for the tests of the page: the system's Chromium, as people's is; skipped where there is none."""

import os
import re
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Without 3-D, as on machines whose graphics driver browsers refuse: nothing of the page may need it.
FLAGS = ["--no-sandbox", "--disable-3d-apis", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def browser():
    """One for each file of tests: while it is open, nobody else can run an event loop in this process."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def served():
    """The demo as people start it, on the tiny model, in this process: one for all tests that need it."""
    from app.serve_flags import PageFlags, ServeFlags
    from app.server import running

    with running(ServeFlags(page=PageFlags(port=0))) as server:
        yield server


@pytest.fixture
def visit(served, browser):
    """Opens the page as one visitor or several; at the end, no script failed and no other host was asked."""
    from tests.app.visiting import DESKTOP, PATIENCE

    contexts, errors, hosts = [], [], set()

    def opened(**options):
        contexts.append(browser.new_context(**(DESKTOP | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda asked: hosts.update(re.findall(r"^https?://([^/:]+)", asked.url)))
        page.on("websocket", lambda opened: hosts.update(re.findall(r"^wss?://([^/:]+)", opened.url)))
        page.goto(served.url)
        page.wait_for_selector("#unit1-canvas canvas")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors
    assert hosts <= {"127.0.0.1"}
