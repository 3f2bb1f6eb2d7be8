"""What the button "Generate" does: the request goes to the worker, and the page follows the job.

The handler is a generator that looks at the job a few times a second. Closing it, or the browser's tab,
cancels the job; the worker hears that between two steps.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app.drawing import Drawn, draw
from app.jobs import Cancelled, Job
from app.outputs import Album
from app.page import FAILED, Served, explain
from app.tabs.generate import GenerateTab
from app.tabs.reading import Asked, form_of, read_values
from app.tabs.status import progress_sentence, result_sentence, status_line
from app.words import Language, language_of, say

LOOK_SECONDS = 0.2  # between two looks at a job
NAMED = re.compile(r"(\w+)(=| must be| has \d+ characters)")  # how a sentence about one field begins
Update = dict[Any, Any]  # component -> what it shows now


def wire_drawing(tab: GenerateTab, served: Served) -> None:
    """Have the buttons "Generate" and "Cancel" of `tab` do something."""

    async def draw_page(request: gr.Request, **values: Any) -> AsyncIterator[Update]:
        lang = language_of(request, served.lang)
        yield {tab.status: status_line(say("getting ready", lang)), tab.gallery: [], tab.used_seed: ""}
        try:
            asked = await asyncio.to_thread(read_values, values, served)
            async for update in _follow(tab, served, asked, request):
                yield update
        except Exception as error:
            sentence = say(explain(error), lang)
            yield {tab.status: status_line(sentence), tab.preview: gr.update(visible=False)}
            if not isinstance(error, Cancelled):
                gr.Warning(sentence, title=say(FAILED, lang))

    def check(request: gr.Request, **values: Any) -> list[dict[str, Any]]:
        lang = language_of(request, served.lang)
        return [gr.validate(not words, words) for words in marks(values, served, lang).values()]

    gr.on(
        [tab.generate.click, tab.fields["prompt"].submit], draw_page, inputs_kwargs=tab.inputs,
        outputs=[tab.status, tab.preview, tab.gallery, tab.used_seed], preprocess=False, validator=check,
        concurrency_id="gpu", concurrency_limit=None, show_progress="hidden", api_visibility="private",
    )  # fmt: skip

    def cancel(request: gr.Request) -> None:
        served.worker.cancel_of(request.session_hash)

    tab.cancel.click(cancel, queue=False, api_visibility="private")


def marks(values: dict[str, Any], served: Served, lang: Language) -> dict[str, str]:
    """What is wrong with each of the page's fields, in words; empty where nothing is.

    What concerns no single field is left to the call itself.
    """
    words = dict.fromkeys(values, "")
    try:
        form_of(values).request(served.facts)
    except ValueError as error:
        named = NAMED.match(str(error))
        field = "prompt" if str(error).startswith("the prompt") else named and named[1]
        if field in words:
            words[field] = say(str(error), lang)
    return words


async def _follow(
    tab: GenerateTab, served: Served, asked: Asked, request: gr.Request
) -> AsyncIterator[Update]:
    """What the page shows while the job of `asked` runs, and at its end. Errors as the job's."""
    models, lang = served.worker.models, language_of(request, served.lang)

    def act(job: Job) -> Drawn:
        return draw(models.get(asked.model), asked.request, asked.inputs.pictures, job)

    job = served.worker.add(Job(act, owner=request.session_hash))
    shown = _Shown(tab, Album(served.folder, asked.inputs))
    try:
        while not job.finished:
            yield await shown.update(job, progress_sentence(job, served.worker, lang))
            await asyncio.sleep(LOOK_SECONDS)
        yield await shown.update(job, progress_sentence(job, served.worker, lang))
        drawn = job.wait(0)
        yield {
            tab.status: status_line(result_sentence(asked, drawn, lang)),
            tab.used_seed: ", ".join(str(one.seed) for one in drawn.requests),
            tab.preview: gr.update(visible=False),
        }
    finally:
        job.cancel()


class _Shown:
    """What of a job the page has already."""

    def __init__(self, tab: GenerateTab, album: Album) -> None:
        self._tab, self._album, self._preview, self._count = tab, album, None, 0

    async def update(self, job: Job, sentence: str) -> Update:
        """The status, and of previews and pictures what is new."""
        update: Update = {self._tab.status: status_line(sentence)}
        drawn, preview = job.result, job.progress.preview
        if drawn is not None and len(drawn.requests) > self._count:
            files = await asyncio.to_thread(self._album.update, drawn)
            self._count = len(drawn.requests)
            update[self._tab.gallery] = files
        if preview is not None and preview is not self._preview:
            self._preview = preview
            update[self._tab.preview] = gr.update(value=preview, visible=True)
        return update
