"""The tab that shows what each detector sees in one picture, and how to get those that are not there."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from app.detecting import Annotated, annotate_all, check_detectors
from app.inputs import uploaded
from app.jobs import Cancelled, Job
from app.outputs import files_of_maps
from app.page import FAILED, Served, explain
from app.request_data import check_size, number
from app.tabs.status import status_line
from app.waiting import LOOK_SECONDS
from app.words import Language, language_of, say, t
from cldm.request import Request

USUAL_SIDE, LEAST_SIDE, MOST_SIDE, SIDE_STEP = 512, 64, 1024, 64


class AnnotateTab:
    """The components of the tab."""

    def __init__(self, served: Served) -> None:
        self._served = served
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.image = gr.Image(
                    type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
                    height=320,
                    buttons=["fullscreen"], label=t("Photograph or drawing"), elem_id="annotate-input",
                )  # fmt: skip
                self.side = gr.Slider(
                    LEAST_SIDE, MOST_SIDE, value=USUAL_SIDE, step=SIDE_STEP, label=t("Resolution"),
                    elem_id="annotate-resolution",
                )  # fmt: skip
                with gr.Row():
                    self.run = gr.Button(t("Show all maps"), variant="primary", elem_id="annotate-run")
                    self.cancel = gr.Button(t("Cancel"), variant="stop", elem_id="annotate-cancel")
                self.status = gr.HTML("", elem_id="annotate-status", elem_classes="status")
            with gr.Column(scale=3, min_width=320):
                self.gallery = gr.Gallery(
                    label=t("Maps"), columns=3, object_fit="contain", height="auto", format="png",
                    interactive=False, elem_id="annotate-gallery", buttons=["download", "fullscreen"],
                )  # fmt: skip
                self.missing = gr.HTML("", elem_id="annotate-missing")
        self.run.click(
            self._run_page, [self.image, self.side], [self.status, self.gallery, self.missing],
            preprocess=False, show_progress="hidden", api_visibility="private", concurrency_id="gpu",
            concurrency_limit=None,
        )  # fmt: skip
        self.cancel.click(self._stop, queue=False, api_visibility="private")

    def _stop(self, request: gr.Request) -> None:
        self._served.worker.cancel_of(request.session_hash)

    async def _run_page(self, image: Any, side: Any, request: gr.Request) -> AsyncIterator[dict]:
        lang, served = language_of(request, self._served.lang), self._served
        yield {self.status: status_line(say("getting ready", lang)), self.gallery: [], self.missing: ""}
        try:
            given = await asyncio.to_thread(uploaded, image, served.folder)
            if given is None:
                raise ValueError("there is no picture: upload one")
            side = number("resolution", side, whole=True)
            check_size(Request("map", controls=(), resolution=side), given.image.shape, side)
            names = check_detectors(None)

            def act(job: Job) -> Annotated:
                return annotate_all(given.image, names, side, served.annotators, job)

            job = served.worker.add(Job(act, owner=request.session_hash))
            try:
                while not job.finished:
                    yield {self.status: status_line(say(f"detector {job.progress.stage}", lang))}
                    await asyncio.sleep(LOOK_SECONDS)
                yield await self._shown(job.wait(0), lang)
            finally:
                job.cancel()
        except Exception as error:
            sentence = say(explain(error), lang)
            yield {self.status: status_line(sentence)}
            if not isinstance(error, Cancelled):
                gr.Warning(sentence, title=say(FAILED, lang))

    async def _shown(self, found: Annotated, lang: Language) -> dict[Any, Any]:
        paths = await asyncio.to_thread(files_of_maps, self._served.folder, found)
        words = [f"{one.detector} · {one.seconds:.2f} s" for one in found.maps]
        return {
            self.status: status_line(""),
            self.gallery: list(zip(paths, words, strict=True)),
            self.missing: missing_list(found.missing, lang),
        }


def missing_list(missing: Mapping[str, str], lang: Language) -> str:
    """What makes each of the other detectors ready, as HTML."""
    if not missing:
        return ""
    head = html.escape(say("Not ready yet", lang))
    rows = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in missing.values())
    return f"<h3>{head}</h3><ul>{rows}</ul>"
