"""Waiting for a job without a thread: what handlers and calls do while the worker works."""

from __future__ import annotations

import asyncio
from typing import Any

from app.jobs import Job
from app.worker import Worker

LOOK_SECONDS = 0.1


async def result_of(job: Job, worker: Worker) -> Any:
    """Queue `job`; its result. What went wrong is raised here. Whoever stops waiting cancels it."""
    worker.add(job)
    try:
        while not job.finished:
            await asyncio.sleep(LOOK_SECONDS)
        return job.wait(0)
    finally:
        job.cancel()
