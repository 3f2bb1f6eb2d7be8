"""The line that says how far a job is, what came of it, and what to know about it."""

from __future__ import annotations

import html
import re

from app.drawing import Drawn
from app.jobs import WAITING, Job
from app.tabs.reading import Asked
from app.uploads import MAX_PIXELS, MEGAPIXEL
from app.words import Language, say
from app.worker import Worker

HANGUL = re.compile("[ㄱ-ㆎ가-힣]")
ENGLISH_ONLY = "this model reads English only: Korean words say nothing to it"


def status_line(sentence: str) -> str:
    """The sentence as the page shows it; screen readers say it when it changes."""
    return f'<p role="status" aria-live="polite">{html.escape(sentence)}</p>'


def progress_sentence(job: Job, worker: Worker, lang: Language) -> str:
    """How far `job` is."""
    if job.state == WAITING:
        ahead = worker.ahead(job)
        return say(f"waiting, {ahead} before you" if ahead else "waiting", lang)
    now = job.progress
    if not now.step:
        return say("getting ready", lang)
    words = say(f"step {now.step} of {now.steps}", lang)
    if now.pictures > 1:
        words = f"{say(f'picture {now.picture + 1} of {now.pictures}', lang)}, {words}"
    if now.seconds_left is not None:
        words += ", " + say(f"about {max(1, round(now.seconds_left))} s left", lang)
    return words


def result_sentence(asked: Asked, drawn: Drawn, lang: Language) -> str:
    """What came of a job, and what whoever asked should know."""
    count = len(drawn.images)
    made = f"{count} pictures" if count > 1 else "1 picture"
    words = [f"{made} in {drawn.seconds:.1f} s by {drawn.model}", *notes(asked, drawn)]
    return " · ".join(say(one, lang) for one in words)


def notes(asked: Asked, drawn: Drawn) -> list[str]:
    """What was done with the request that nobody asked for, or what it cannot mean."""
    found = [
        f"{one.name} was shrunk to {MAX_PIXELS // MEGAPIXEL} megapixels"
        for one in asked.inputs.all
        if one.shrunk
    ]
    if not drawn.reads_korean and HANGUL.search(asked.request.prompt + asked.request.negative_prompt):
        found.append(ENGLISH_ONLY)
    return found
