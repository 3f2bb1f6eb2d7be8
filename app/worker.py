"""One thread that owns the models: it works jobs off one after the other, people's before bots'.

Whoever asks gets a `Job` at once, watches its progress, and may cancel it: that is heard between two steps of
the sampler. Running out of memory or any other mistake ends one job and leaves the next ones alone.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import threading
from typing import TYPE_CHECKING

from app.drawing import Drawn, Pictures, draw
from app.jobs import PEOPLE, Job
from common.shell import is_out_of_memory

if TYPE_CHECKING:
    from app.models import Models
    from cldm.request import Request

OUT_OF_MEMORY = "out of memory: lower the resolution, or start the server with --save-memory"


class QueueFull(ValueError):
    """Too many wait already."""


class OutOfMemory(ValueError):
    """The machine's memory is too small for what was asked."""


class Worker:
    """Runs jobs on `models`, at most `max_queue` of them waiting. `close` ends its thread."""

    def __init__(self, models: Models, max_queue: int = 20) -> None:
        self.models, self.max_queue = models, max_queue
        self._waiting: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        # A daemon: one long step of a large model must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        with self._changed:
            return self._running is None and not self._waiting

    def submit(
        self, request: Request, pictures: Pictures, *, priority: int = PEOPLE, deadline: float | None = None,
        owner: str = "",
    ) -> Job:  # fmt: skip
        """Have the pictures of `request` made by the first model; the job's result is `Drawn`.

        Errors as `add`.
        """

        def act(job: Job) -> Drawn:
            return draw(self.models.get(self.models.first), request, pictures, job)

        return self.add(Job(act, priority, deadline, owner))

    def add(self, job: Job) -> Job:
        """Queue `job`. QueueFull in one sentence when too many wait, RuntimeError once closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is closing")
            self._answer_cancelled()
            if len(self._waiting) >= self.max_queue:
                raise QueueFull(f"{len(self._waiting)} are waiting already: try again in a minute")
            heapq.heappush(self._waiting, (job.priority, next(self._numbers), job))
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before `job`, the running one included."""
        with self._changed:
            running = int(self._running is not None and self._running is not job)
            mine = next((entry for entry in self._waiting if entry[2] is job), None)
            return 0 if mine is None else running + sum(entry < mine for entry in self._waiting)

    def cancel_of(self, owner: str) -> None:
        """Cancel all that `owner` waits for."""
        with self._changed:
            jobs = [entry[2] for entry in self._waiting] + [self._running]
            for job in jobs:
                if job is not None and owner and job.owner == owner:
                    job.cancel()
            self._answer_cancelled()

    def close(self) -> None:
        """Cancel everything and take nothing more. A step that runs is not waited for."""
        with self._changed:
            self._closed = True
            for job in [entry[2] for entry in self._waiting] + [self._running]:
                if job is not None:
                    job.cancel()
            self._answer_cancelled()
            self._changed.notify()

    def _answer_cancelled(self) -> None:
        """Answer cancelled jobs that wait; they take no place in the queue."""
        gone = [entry[2] for entry in self._waiting if entry[2].cancelled]
        self._waiting = [entry for entry in self._waiting if not entry[2].cancelled]
        heapq.heapify(self._waiting)
        for job in gone:
            job.run()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run(_explain)
            with self._changed:
                self._running = None

    def _next(self) -> Job | None:
        """The job to do now, waiting for one; None once closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
                self._answer_cancelled()
            if self._closed:
                return None
            self._running = heapq.heappop(self._waiting)[2]
            return self._running


def _explain(error: BaseException) -> BaseException:
    """The error that whoever asked shall see."""
    if not is_out_of_memory(error):
        return error
    # Its traceback holds every frame, and with them all tensors that took the memory.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    free_memory()
    return OutOfMemory(OUT_OF_MEMORY)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
