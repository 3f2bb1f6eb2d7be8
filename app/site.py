"""The whole page: its tabs, put together."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.api import add_api
from app.page import Page, Served
from app.tabs.annotate import AnnotateTab
from app.tabs.compare import CompareTab
from app.tabs.drawing import wire_drawing
from app.tabs.generate import GenerateTab
from app.tabs.maps import wire_maps
from app.tabs.restoring import wire_restoring
from app.tabs.results import ResultsTab
from app.words import t

TITLE = "Featherweight ControlNet"
KEEP_FILES = (600, 3600)  # look every so many seconds for files that are older than so many


def build(served: Served) -> Page:
    """The page, ready to be launched."""
    with Page(title=TITLE, delete_cache=KEEP_FILES, analytics_enabled=False) as page:
        page.served = served
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(t("Generate"), id="generate", elem_id="tab-generate"):
                tab = GenerateTab(served)
            with gr.Tab(t("Compare"), id="compare", elem_id="tab-compare"):
                CompareTab(tab, served)
            with gr.Tab(t("Annotate"), id="annotate", elem_id="tab-annotate"):
                AnnotateTab(served)
            with gr.Tab(t("Results"), id="results", elem_id="tab-results") as door:
                results = ResultsTab()
        door.select(results.refresh, None, results.outputs, api_visibility="private", show_progress="hidden")
        wire_drawing(tab, served)
        wire_maps(tab, served)
        wire_restoring(tab, served)
        _wire_comparing(tab, tabs)
        add_api(served)

        def left(request: gr.Request) -> None:
            served.worker.cancel_of(request.session_hash)

        page.unload(left)
    return page


def _wire_comparing(tab: GenerateTab, tabs: gr.Tabs) -> None:
    """Have the button under the gallery go on with the picture's own seed in the other tab."""

    def go(seeds: Any, randomise: Any) -> tuple[Any, Any, Any]:
        first = str(seeds).partition(",")[0]
        seed = gr.update(value=int(first)) if first.isdecimal() and len(first) < 11 else gr.skip()
        return gr.Tabs(selected="compare"), seed, False if first else randomise

    outputs = [tabs, tab.fields["seed"], tab.fields["randomise"]]
    tab.to_compare.click(
        go, [tab.used_seed, tab.fields["randomise"]], outputs, preprocess=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
