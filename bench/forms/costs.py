"""What forms of a model cost: bytes on disk, seconds to load, seconds a step and a picture, memory.

Each form has a process of its own. Loading is timed in a fresh one, with the file's pages dropped from memory
("cold") or just read ("warm"). Pictures are made in turns: a round is one of each form, so that whatever else
the machine does meets all of them; the first of each is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

from bench.forms.form import Form
from bench.harness import GIB, MIB, Column
from bench.memory.quantized_load import PAGES, set_pages
from bench.processes import ProcessOptions, Worker, apart
from bench.results import Measurement

PROMPT, NEGATIVE = "a red circle on a blue ground", "blurry, low quality"
COST_COLUMNS = (
    Column("file, MiB", "file", "{:.1f}", MIB),
    Column("load cold, s", "cold load"),
    Column("warm, s", "warm load"),
    Column("s a step", "step"),
    Column("s a picture", "picture"),
    Column("peak, GiB", "peak", "{high:.2f}", GIB),
)


@dataclass(frozen=True)
class Workload:
    """What is timed: `rounds` pictures of `size` pixels in `steps` DDIM steps with guidance."""

    size: int = 128
    steps: int = 20
    rounds: int = 3
    threads: int | None = None
    device: str = "auto"


def costs(forms: Sequence[Form], work: Workload) -> Iterator[Measurement]:
    """Sizes and loads of all forms, then their pictures in turns."""
    for form in forms:
        yield Measurement(form.name, "file", sum(path.stat().st_size for path in form.files), "B")
    options = ProcessOptions(threads=work.threads, quiet=True, device=_kind(work.device))
    for _, form, pages in product(range(work.rounds), forms, PAGES):
        for path in form.files:
            set_pages(path, pages)
        seconds = apart(load_seconds, form, work.device, options=options)
        yield Measurement.of(form.name, f"{pages} load", "s", [seconds])
    yield from _in_turns(forms, work, options)


def _in_turns(forms: Sequence[Form], work: Workload, options: ProcessOptions) -> Iterator[Measurement]:
    with ExitStack() as stack:
        workers = {
            form.name: stack.enter_context(Worker(pictures, form, work, options=options)) for form in forms
        }
        for number in range(work.rounds + 1):
            for name, worker in workers.items():
                cost, step = worker.run()
                if number:  # the first packs weights
                    yield Measurement.of(name, "picture", "s", [cost.wall])
                    yield Measurement.of(name, "step", "s", [step])
                yield Measurement.of(name, "peak", "B", [cost.peak])


def load_seconds(form: Form, device: str) -> float:
    """Of a process that has everything imported."""
    from ldm.config import create_meta_model

    create_meta_model(form.config)
    start = time.perf_counter()
    form.open(device)
    return time.perf_counter() - start


def pictures(form: Form, work: Workload) -> Callable[[], float]:
    """What makes a picture of a ready-made map and gives the seconds of one of its steps."""
    import cv2
    import numpy as np

    from cldm.request import ControlInput, Request

    pipeline = form.open(work.device)
    hint = np.zeros((work.size, work.size, 3), np.uint8)
    cv2.circle(hint, (work.size // 2, work.size // 2), work.size // 3, (255, 255, 255), 2)
    controls = (ControlInput(preprocess=False),)
    request = Request(PROMPT, NEGATIVE, controls, steps=work.steps, resolution=work.size)
    return lambda: pipeline(hint, request).seconds["sample"] / work.steps


def _kind(device: str) -> str:
    from ldm.util import pick_device

    return pick_device(device).type
