"""Training pairs in Fill50k's form, made by several processes.

A folder holds source/N.png (the control), target/N.png (the image) and prompt.json, one JSON object a line,
as the published set does. Sample N depends on its recipe and on N alone: not on the workers, the count or an
interruption, so a second run goes on where the first one stopped.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from common.atomic import atomic_write

KINDS = "source", "target"
SETTINGS_FILE = "recipe.json"  # beside prompt.json: what the images already there were made with
# Flat colours compress best unfiltered: at 512, 2.4 ms and 16 kB a sample, not 13 ms and 17 kB.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
CHUNK = 16  # samples per message to a worker


class PairRecipe(Protocol):
    """A frozen dataclass that says what the samples of a folder have in common."""

    def prompt(self, index: int) -> str:
        """The text of sample `index`."""

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of sample `index`, uint8 [H W 3] each."""


def make_dataset(folder: Path, count: int, recipe: PairRecipe, workers: int = 1) -> int:
    """Write samples 0 to count - 1 into `folder`; returns how many were missing.

    Images that are there are kept. Every file appears whole or not at all, prompt.json last. Raises
    ValueError if the folder holds images of another recipe, OSError if the disk refuses.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count={count}, workers={workers}: both must be 1 or more")
    folder = Path(folder)
    _claim(folder, recipe)
    files = [{kind: f"{kind}/{i}.png" for kind in KINDS} for i in range(count)]
    missing = [i for i in range(count) if not all((folder / name).exists() for name in files[i].values())]
    _write_all(folder, recipe, missing, workers)
    entries = (files[i] | {"prompt": recipe.prompt(i)} for i in range(count))
    _write(folder / "prompt.json", "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    return len(missing)


def _claim(folder: Path, recipe: PairRecipe) -> None:
    """Create the folders, or make sure that what they hold was made by the same recipe."""
    settings, wanted = folder / SETTINGS_FILE, json.dumps(asdict(recipe))  # type: ignore[call-overload]
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if settings.exists():
        if json.loads(settings.read_text()) != json.loads(wanted):
            found = f"samples of another recipe ({settings.read_text()})"
            cure = "repeat its settings to go on, or choose another folder"
            raise ValueError(f"{folder} holds {found}: {cure}")
    elif any((folder / "source").iterdir()):
        raise ValueError(f"{folder} holds images of unknown origin: choose an empty folder")
    else:
        _write(settings, wanted.encode())


def _write_all(folder: Path, recipe: PairRecipe, indices: list[int], workers: int) -> None:
    """When one of the processes fails, the others finish what they hold and the rest is dropped."""
    from tqdm import tqdm

    write, workers = partial(_write_pair, folder, recipe), min(workers, len(indices))
    context = get_context("spawn")  # fork is unsafe once a caller has threads, as torch does
    pool = ProcessPoolExecutor(workers, context, _start_worker) if workers > 1 else None
    try:
        with _deaf_to_ctrl_c():  # map starts the workers
            done = pool.map(write, indices, chunksize=CHUNK) if pool else map(write, indices)
        for _ in tqdm(done, total=len(indices), unit="sample", desc=str(folder), disable=None):
            pass
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here never hear Ctrl-C, not even while they import; this one hears it afterwards."""
    posix = hasattr(signal, "pthread_sigmask")  # Windows has none
    before = posix and signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if posix:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; only the parent acts on it
    cv2.setNumThreads(1)


def _write_pair(folder: Path, recipe: PairRecipe, index: int) -> None:
    for kind, image in zip(KINDS, recipe.pair(index), strict=True):
        done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), PNG_OPTIONS)
        assert done, "OpenCV encodes any uint8 image"
        _write(folder / kind / f"{index}.png", encoded.tobytes())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as partial_file:
        partial_file.write_bytes(content)
