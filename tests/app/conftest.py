"""A browser for the tests of the page: the system's Chromium, as people's is; skipped where there is none."""

import os
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
