"""The whole page: its tabs, put together."""

from __future__ import annotations

import gradio as gr

from app.api import add_api
from app.page import Page, Served
from app.tabs.drawing import wire_drawing
from app.tabs.generate import GenerateTab
from app.tabs.maps import wire_maps
from app.words import t

TITLE = "Featherweight ControlNet"
KEEP_FILES = (600, 3600)  # look every so many seconds for files that are older than so many


def build(served: Served) -> Page:
    """The page, ready to be launched."""
    with Page(title=TITLE, delete_cache=KEEP_FILES, analytics_enabled=False) as page:
        page.served = served
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs(elem_id="tabs"), gr.Tab(t("Generate"), id="generate", elem_id="tab-generate"):
            tab = GenerateTab(served)
        wire_drawing(tab, served)
        wire_maps(tab, served)
        add_api(served)

        def left(request: gr.Request) -> None:
            served.worker.cancel_of(request.session_hash)

        page.unload(left)
    return page
