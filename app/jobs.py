"""A job: what someone waits for, how far it is, and how to stop it. No models and no web page in here."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PEOPLE, BOTS, PREPARATION = 0, 1, 2  # who is served first
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


class Cancelled(Exception):
    """Whoever asked does not want the result any more."""


class TooLate(Exception):
    """The deadline passed before the result was there."""


@dataclass(frozen=True)
class Progress:
    """How far a job is. step: finished ones of `steps` of this picture; picture: from 0, of `pictures`.

    seconds_left: of the whole job, None while nobody can know. preview: rough picture, uint8 [H W 3].
    """

    stage: str = ""
    step: int = 0
    steps: int = 0
    picture: int = 0
    pictures: int = 1
    seconds_left: float | None = None
    preview: np.ndarray | None = None


@dataclass
class Job:
    """Work that the worker does or will do; `act(job)` is run in the worker's thread.

    priority: PEOPLE before BOTS. deadline: in `time.monotonic` seconds. owner: of a browser's tab, so that
    closing it cancels what it asked for. shows_previews: somebody looks.
    """

    act: Callable[[Job], Any]
    priority: int = PEOPLE
    deadline: float | None = None
    owner: str = ""
    shows_previews: bool = True
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    state: str = WAITING
    progress: Progress = Progress()
    result: Any = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._finished = threading.Event()
        self._cancelled = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether there is a result, or an error in place of it."""
        return self._finished.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop it, even if it has not stopped yet."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop within one step; a job that waits never starts."""
        self._cancelled.set()

    def check(self) -> None:
        """Called between steps: Cancelled or TooLate when it shall not go on."""
        if self.cancelled:
            raise Cancelled("stopped")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TooLate("the time for this was up")

    def wait(self, timeout: float | None = None) -> Any:
        """The result. What went wrong is raised here; TimeoutError while it is not finished."""
        if not self._finished.wait(timeout):
            raise TimeoutError("not finished yet")
        if self.error is not None:
            raise self.error
        return self.result

    def run(self, explain: Callable[[BaseException], BaseException] = lambda error: error) -> None:
        """Do the work; what went wrong is kept for `wait`, as `explain` says it. Called once."""
        try:
            self.check()
            self.state = RUNNING
            self.result = self.act(self)
            self.state = DONE
        except BaseException as error:  # of whatever kind: somebody waits for an answer
            self.error, self.state = explain(error), FAILED
        finally:
            self._finished.set()
