"""The tab that draws one request with several models and shows, two at a time, how they differ."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.comparing import MOST_MODELS, Compared, check_models, compare
from app.jobs import Cancelled, Job
from app.outputs import write_compared, write_difference
from app.page import FAILED, Served, explain
from app.tabs.generate import GenerateTab
from app.tabs.reading import read_values
from app.tabs.status import progress_sentence, status_line
from app.tabs.tables import html_table
from app.uploads import uploaded_file
from app.waiting import LOOK_SECONDS
from app.words import Language, language_of, say, t
from ldm.image import read_image

MEGABYTE = 10**6
HEADS = ("Model", "Seconds", "Peak memory, MB", "Files, MB", "PSNR, dB", "SSIM")


class CompareTab:
    """The components of the tab. The request is that of the tab "Generate", as it stands there."""

    def __init__(self, tab: GenerateTab, served: Served) -> None:
        self._source, self._served = tab, served
        names = served.worker.models.names
        gr.Markdown(t("Draws what stands in the first tab, with several models, one after the other."))
        self.models = gr.CheckboxGroup(
            names, value=names[:MOST_MODELS], label=t("Models (2 to 4)"), elem_id="compare-models"
        )
        with gr.Row():
            self.run = gr.Button(t("Compare"), variant="primary", elem_id="compare-run")
            self.cancel = gr.Button(t("Cancel"), variant="stop", elem_id="compare-cancel")
        self.status = gr.HTML("", elem_id="compare-status", elem_classes="status")
        with gr.Row():
            self.left = gr.Dropdown([], label=t("Left"), elem_id="compare-left")
            self.right = gr.Dropdown([], label=t("Right"), elem_id="compare-right")
        with gr.Row():
            self.slider = gr.ImageSlider(
                label=t("Left and right"), type="filepath", format="png", interactive=False,
                max_height=512, elem_id="compare-slider", buttons=["download", "fullscreen"],
            )  # fmt: skip
            self.difference = gr.Image(
                label=t("Difference, four times as bright"), interactive=False, format="png", height=512,
                buttons=["download", "fullscreen"],
                elem_id="compare-difference",
            )  # fmt: skip
        self.table = gr.HTML("", elem_id="compare-table")
        self._files = gr.State({})  # model -> its picture; of this browser's tab alone
        self._wire()

    def _wire(self) -> None:
        hidden = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [self.left, self.right, self.slider, self.difference]
        self.run.click(
            self._run_page, inputs_kwargs=self._source.inputs | {"models": self.models},
            outputs=[self.status, self.table, self._files, *shown], concurrency_id="gpu",
            concurrency_limit=None, **hidden,
        )  # fmt: skip
        for side in (self.left, self.right):
            side.input(
                self._show_pair, [self._files, self.left, self.right], [self.slider, self.difference],
                **hidden,
            )  # fmt: skip
        self.cancel.click(self._stop, queue=False, api_visibility="private")

    def _stop(self, request: gr.Request) -> None:
        self._served.worker.cancel_of(request.session_hash)

    async def _run_page(self, request: gr.Request, models: Any, **values: Any) -> AsyncIterator[dict]:
        lang, worker = language_of(request, self._served.lang), self._served.worker
        yield {self.status: status_line(say("getting ready", lang)), self.table: ""}
        try:
            asked = await asyncio.to_thread(read_values, values, self._served)
            names, pictures = check_models(models, worker.models), asked.inputs.pictures

            def act(job: Job) -> list[Compared]:
                return compare(worker.models, names, asked.request, pictures, job)

            job = worker.add(Job(act, owner=request.session_hash))
            try:
                while not job.finished:
                    yield {
                        self.status: status_line(
                            f"{job.progress.stage} {progress_sentence(job, worker, lang)}"
                        )
                    }
                    await asyncio.sleep(LOOK_SECONDS)
                made = job.wait(0)
            finally:
                job.cancel()
            yield await asyncio.to_thread(self._shown, made, asked.inputs, lang)
        except Exception as error:
            sentence = say(explain(error), lang)
            yield {self.status: status_line(sentence)}
            if not isinstance(error, Cancelled):
                gr.Warning(sentence, title=say(FAILED, lang))

    def _shown(self, made: Sequence[Compared], inputs: Any, lang: Language) -> dict[Any, Any]:
        paths = write_compared(self._served.folder, inputs, made)
        files = {one.model: path for one, path in zip(made, paths, strict=True)}
        names = list(files)
        slider, difference = self._pair(files, *names[:2])
        return {
            self.status: status_line(""),
            self.table: table_of(made, lang),
            self._files: files,
            self.left: gr.update(choices=names, value=names[0]),
            self.right: gr.update(choices=names, value=names[1]),
            self.slider: slider,
            self.difference: difference,
        }

    def _show_pair(self, files: dict[str, str], left: Any, right: Any) -> tuple[Any, Any]:
        return self._pair(files, left, right)

    def _pair(self, files: dict[str, str], left: Any, right: Any) -> tuple[Any, Any]:
        if str(left) not in files or str(right) not in files:
            raise ValueError("compare first: there are no pictures of these models yet")
        pair = [uploaded_file(files[name], self._served.folder) for name in (left, right)]
        difference = write_difference(self._served.folder, *map(read_image, pair))
        return tuple(map(Path.as_posix, pair)), difference


def table_of(made: Sequence[Compared], lang: Language) -> str:
    """What each model costs and how far it is from the first, as a table of HTML."""
    return html_table([say(one, lang) for one in HEADS], map(_cells, made))


def _cells(one: Compared) -> list[str]:
    psnr = "–" if one.psnr is None else "∞" if one.psnr == math.inf else f"{one.psnr:.1f}"
    ssim = "–" if one.ssim is None else f"{one.ssim:.4f}"
    sizes = (f"{size / MEGABYTE:.1f}" for size in (one.peak_bytes, one.file_bytes))
    return [one.model, f"{one.seconds:.2f}", *sizes, psnr, ssim]
