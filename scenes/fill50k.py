"""Makes data in the form of Fill50k, the ControlNet tutorial's set: outlines to fill with named colours.

    python -m scenes.fill50k --out training/fill50k --count 50000 --size 512 --shapes circle

writes source/N.png (white outline on black), target/N.png (the filled shape) and prompt.json, one JSON object
a line, as the published set does. Sample N depends on its recipe and on N alone: not on the workers, the
count or an interruption, so a second run of the same command goes on where the first one stopped.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from common.atomic import atomic_write
from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command
from scenes.shape_scenes import Scene, random_scene, render
from scenes.shapes import SHAPES

MAX_SIZE = 4096  # supersampled four times, one image then takes half a gigabyte
KINDS = "source", "target"
SETTINGS_FILE = "recipe.json"  # beside prompt.json: what the images already there were made with
# Flat colours compress best unfiltered: at 512, 2.4 ms and 16 kB a sample, not 13 ms and 17 kB.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
CHUNK = 16  # samples per message to a worker


@dataclass(frozen=True)
class Recipe:
    """What the samples of one folder have in common."""

    size: int = flag(512, "side in pixels")
    shapes: tuple[str, ...] = flag(SHAPES, f"of {', '.join(SHAPES)}; all by default", metavar="SHAPE")
    seed: int = flag(0, "another seed, other samples")
    widths: tuple[float, ...] = flag(
        (3.0, 3.0), "lowest and highest line width, pixels at 512 (default: 3 3, one thin line)",
        "--line-width", nargs=2, metavar=("MIN", "MAX"),
    )  # fmt: skip
    hand_drawn: float = flag(0.0, "share of shaky outlines with gaps")
    held_out: bool = flag(False, "make the combinations kept for tests instead of those for training")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shapes) - set(SHAPES))
        if unknown or not self.shapes:
            wrong = ", ".join(unknown) or "(none)"
            raise ValueError(f"shapes {wrong} unknown: choose from {', '.join(SHAPES)}")
        if not 1 < self.size <= MAX_SIZE:
            raise ValueError(f"size={self.size}: an image's side is 2 to {MAX_SIZE} pixels")
        if not 0 < self.widths[0] <= self.widths[1]:
            raise ValueError(f"widths={self.widths}: give the lowest and the highest, both above 0")
        if not 0 <= self.hand_drawn <= 1:
            raise ValueError(f"hand_drawn={self.hand_drawn}: a share is between 0 and 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")

    def scene(self, index: int) -> Scene:
        """Scene `index` of this recipe, the same one whenever it is asked for."""
        rng = np.random.default_rng([self.seed, index])
        options = {"held_out": self.held_out, "hand_drawn": self.hand_drawn, "widths": self.widths}
        return random_scene(rng, self.shapes, **options)


@dataclass(frozen=True)
class Output:
    """Where the samples go and how many are made at a time."""

    out: Path = flag(Path("training/fill50k"), "folder")
    count: int = flag(50_000, "samples")
    workers: int = flag(os.cpu_count() or 1, "processes")


def make_dataset(folder: Path, count: int, recipe: Recipe, workers: int = 1) -> int:
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
    entries = (files[i] | {"prompt": recipe.scene(i).prompt} for i in range(count))
    _write(folder / "prompt.json", "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    return len(missing)


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as `common.shell`."""
    parser = Parser("-m scenes.fill50k", __doc__)
    add_flags(parser, Output)
    add_flags(parser, Recipe)
    args = parser.parse_args(argv)
    output = read_flags(Output, args)

    def make() -> str:
        made = make_dataset(output.out, output.count, read_flags(Recipe, args), output.workers)
        return f"{output.count} samples in {output.out} ({made} new, {output.count - made} were there)"

    kept = f"stopped; finished samples stay in {output.out}, the same command goes on from there"
    return run_command(make, stopped=kept)


def _claim(folder: Path, recipe: Recipe) -> None:
    """Create the folders, or make sure that what they hold was made by the same recipe."""
    settings, wanted = folder / SETTINGS_FILE, json.dumps(asdict(recipe))
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


def _write_all(folder: Path, recipe: Recipe, indices: list[int], workers: int) -> None:
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


def _write_pair(folder: Path, recipe: Recipe, index: int) -> None:
    source, target, _ = render(recipe.scene(index), recipe.size)
    for kind, image in zip(KINDS, (source, target), strict=True):
        done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), PNG_OPTIONS)
        assert done, "OpenCV encodes any uint8 image"
        _write(folder / kind / f"{index}.png", encoded.tobytes())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as partial_file:
        partial_file.write_bytes(content)


if __name__ == "__main__":
    raise SystemExit(main())
