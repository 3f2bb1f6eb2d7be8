"""One request drawn for somebody who watches: picture after picture, with progress and rough previews.

Pictures are made one at a time, as `generate.py` makes them: picture k has the bytes of its own request, and
what is finished stays when the rest is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from app.batch import single_requests
from app.jobs import Job, Progress

if TYPE_CHECKING:
    from app.models import LoadedModel
    from app.provenance import Provenance
    from cldm.request import Request
    from ldm.models.diffusion.sampling_run import Step

PREVIEW_SECONDS = 0.5  # between two previews
PREVIEW_SHARE = 0.1  # of the time that a request takes


@dataclass(frozen=True)
class Pictures:
    """What goes into a request: uint8 arrays, one image for each control or one for all."""

    images: Sequence[np.ndarray]
    init: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass
class Drawn:
    """What a request became: its control maps, the pictures and the complete request of each.

    seconds: of the whole; preview_seconds: of them for previews. model: its name; provenance: what else the
    pictures depend on, input pictures aside. reads_korean: whether it understands more than English.
    """

    model: str
    provenance: Provenance
    reads_korean: bool = False
    maps: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    preview_seconds: float = 0.0


def draw(loaded: LoadedModel, request: Request, pictures: Pictures, job: Job) -> Drawn:
    """Make the pictures of `request`; `job` hears how far it is and may stop it between steps.

    Errors as `Pipeline.__call__` and `Job.check`; the pictures finished before are in `job.result`.
    """
    job.result = drawn = Drawn(loaded.name, loaded.provenance, loaded.reads_korean)
    watch = _Watch(loaded, job, request, drawn)
    for number, one in enumerate(single_requests(request)):
        job.check()
        watch.begin(number)
        made = loaded.pipeline(
            pictures.images, one, init=pictures.init, mask=pictures.mask, on_step=watch.on_step
        )
        drawn.maps = made.maps
        drawn.images += made.images
        drawn.requests.append(replace(made.request, num_samples=1))
        drawn.seconds = watch.elapsed
    return drawn


class _Watch:
    """Tells a job about the steps of its request."""

    def __init__(self, loaded: LoadedModel, job: Job, request: Request, drawn: Drawn) -> None:
        self._loaded, self._job, self._drawn = loaded, job, drawn
        self._start = self._last_preview = time.perf_counter()
        self._total = Progress(steps=request.steps, pictures=request.num_samples)
        self._number = self._done = 0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def begin(self, number: int) -> None:
        self._number = number
        before = self._job.progress
        self._job.progress = replace(
            self._total,
            stage="prepare",
            picture=number,
            seconds_left=before.seconds_left,
            preview=before.preview,
        )

    def on_step(self, step: Step) -> None:
        self._job.check()
        self._done += 1
        steps = step.total * self._total.pictures
        left = self.elapsed / self._done * (steps - self._done)
        preview = self._preview(step)
        self._job.progress = replace(
            self._total, stage="draw", step=step.index + 1, steps=step.total, picture=self._number,
            seconds_left=left, preview=self._job.progress.preview if preview is None else preview,
        )  # fmt: skip

    def _preview(self, step: Step) -> np.ndarray | None:
        """A rough picture now and then, and only where it takes little of the time."""
        if not self._job.shows_previews or step.index + 1 == step.total:
            return None
        now, spent, cost = time.perf_counter(), self._drawn.preview_seconds, self._loaded.preview_seconds
        if now - self._last_preview < PREVIEW_SECONDS or spent + cost > PREVIEW_SHARE * self.elapsed:
            return None
        preview = self._loaded.pipeline.preview(step.x0)[0]
        self._last_preview = time.perf_counter()
        self._loaded.preview_seconds = self._last_preview - now
        self._drawn.preview_seconds += self._loaded.preview_seconds
        return preview
