"""Makes data in the form of Fill50k, the ControlNet tutorial's set: outlines to fill with named colours.

    python -m scenes.fill50k --out training/fill50k --count 50000 --size 512 --shapes circle

writes source/N.png (white outline on black), target/N.png (the filled shape) and prompt.json, one JSON object
a line, as the published set does. Sample N depends on the seed and N alone: not on the workers, the count or
an interruption, so a second run of the same command goes on where the first one stopped.
"""

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from scenes.colours import COLOURS
from scenes.shape_scenes import Scene, is_held_out, random_scene, render
from scenes.shapes import SHAPES

__all__ = ["COLOURS", "SHAPES", "Recipe", "Scene", "is_held_out", "make_dataset", "random_scene", "render"]

SETTINGS_FILE = "recipe.json"  # beside prompt.json: what the pictures already there were made with
# Flat colours compress best unfiltered: measured at 512, 2.4 ms and 16 kB a sample (default: 13 ms and 17
# kB).
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
CHUNK = 16  # samples per message to a worker
MAX_SIZE = 4096  # supersampled four times, one picture then takes half a gigabyte


@dataclass(frozen=True)
class Recipe:
    """What the samples of one folder have in common.

    size: side in pixels. widths: lowest and highest line width in pixels at 512. hand_drawn: share of wobbled
    outlines with gaps. held_out: make the combinations that are kept for tests instead of those for training.
    """

    size: int = 512
    shapes: tuple[str, ...] = SHAPES
    seed: int = 0
    widths: tuple[float, float] = (3.0, 3.0)  # one thin line, as in Fill50k
    hand_drawn: float = 0.0
    held_out: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shapes) - set(SHAPES))
        if unknown or not self.shapes:
            raise ValueError(
                f"shapes {', '.join(unknown) or '(none)'} unknown: choose from {', '.join(SHAPES)}"
            )
        if not 1 < self.size <= MAX_SIZE:
            raise ValueError(f"size={self.size}: a picture's side is 2 to {MAX_SIZE} pixels")
        if not 0 < self.widths[0] <= self.widths[1]:
            raise ValueError(
                f"widths={self.widths}: give the lowest and the highest line width, both above 0"
            )
        if not 0 <= self.hand_drawn <= 1:
            raise ValueError(f"hand_drawn={self.hand_drawn}: a share is between 0 and 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")

    def scene(self, index: int) -> Scene:
        """Give scene `index` of this recipe, the same one whenever it is asked for."""
        rng = np.random.default_rng([self.seed, index])
        return random_scene(
            rng, self.shapes, held_out=self.held_out, hand_drawn=self.hand_drawn, widths=self.widths
        )


def make_dataset(folder: Path, count: int, recipe: Recipe | None = None, workers: int = 1) -> int:
    """Write samples 0 to count - 1 into `folder`; returns how many were missing.

    Pictures that are there are kept. Every file appears whole or not at all, prompt.json last. Raises
    ValueError if the folder holds pictures of another recipe, OSError if the disk refuses.
    """
    recipe = recipe or Recipe()
    if count < 1 or workers < 1:
        raise ValueError(f"count={count}, workers={workers}: both must be 1 or more")
    folder = Path(folder)
    _claim(folder, recipe)
    missing = [i for i in range(count) if not _is_there(folder, i)]
    _write_all(folder, recipe, missing, workers)
    lines = (json.dumps(_entry(i, recipe.scene(i))) + "\n" for i in range(count))
    _write_atomically(folder / "prompt.json", "".join(lines).encode())
    return len(missing)


def _entry(index: int, scene: Scene) -> dict[str, str]:
    return {"source": f"source/{index}.png", "target": f"target/{index}.png", "prompt": scene.prompt}


def _picture(folder: Path, kind: str, index: int) -> Path:
    return folder / kind / f"{index}.png"


def _is_there(folder: Path, index: int) -> bool:
    return _picture(folder, "source", index).exists() and _picture(folder, "target", index).exists()


def _claim(folder: Path, recipe: Recipe) -> None:
    """Create the folders, or make sure that what they hold was made by the same recipe."""
    settings = folder / SETTINGS_FILE
    wanted = json.dumps(asdict(recipe))
    for kind in ("source", "target"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if settings.exists() and settings.read_text() == wanted:
        return
    if settings.exists():
        found = f"samples of another recipe ({settings.read_text()})"
        raise ValueError(f"{folder} holds {found}: repeat its settings to go on, or choose another folder")
    if any((folder / "source").iterdir()):
        raise ValueError(f"{folder} holds pictures of unknown origin: choose an empty folder")
    _write_atomically(settings, wanted.encode())


def _write_all(folder: Path, recipe: Recipe, indices: list[int], workers: int) -> None:
    from tqdm import tqdm

    with _mapped(partial(_write_sample, folder, recipe), indices, min(workers, len(indices))) as samples:
        for _ in tqdm(samples, total=len(indices), unit="sample", desc=str(folder), disable=None):
            pass


@contextmanager
def _mapped(work: Callable[[int], None], items: list[int], workers: int) -> Iterator[Iterator[None]]:
    """Work in so many processes. When one fails, the others finish what they hold and the rest is dropped."""
    if workers <= 1:
        yield map(work, items)
        return
    context = get_context("spawn")  # fork is unsafe once a caller has threads, as torch does
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        with _deaf_to_ctrl_c():  # map starts the workers
            samples = pool.map(work, items, chunksize=CHUNK)
        yield samples
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


def _write_sample(folder: Path, recipe: Recipe, index: int) -> None:
    source, target, _ = render(recipe.scene(index), recipe.size)
    _write_atomically(_picture(folder, "source", index), _png(source))
    _write_atomically(_picture(folder, "target", index), _png(target))


def _png(picture: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), PNG_OPTIONS)
    assert done, "OpenCV encodes any uint8 picture"
    return encoded.tobytes()


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scenes.fill50k",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("training/fill50k"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=50_000, help="samples (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (default: %(default)s)")
    parser.add_argument(
        "--shapes", nargs="+", default=list(SHAPES), metavar="SHAPE", help=f"of {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other samples (default: %(default)s)"
    )
    parser.add_argument(
        "--line-width",
        type=float,
        nargs=2,
        default=(3, 3),
        metavar=("MIN", "MAX"),
        help="pixels at 512 (default: 3 3)",
    )
    parser.add_argument(
        "--hand-drawn", type=float, default=0.0, help="share of shaky outlines with gaps (default: 0)"
    )
    parser.add_argument("--held-out", action="store_true", help="make the combinations kept for tests")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the folder is complete, 1 with a sentence when it is not, 130 after Ctrl-C."""
    args = parse_args(argv)
    try:
        widths = (args.line_width[0], args.line_width[1])
        recipe = Recipe(args.size, tuple(args.shapes), args.seed, widths, args.hand_drawn, args.held_out)
        made = make_dataset(args.out, args.count, recipe, args.workers)
    except KeyboardInterrupt:
        return _say(f"stopped; finished samples stay in {args.out}, the same command goes on from there", 130)
    except OSError as error:
        cure = "free some space" if error.errno == errno.ENOSPC else "choose a folder that can be written"
        return _say(
            f"cannot write to {args.out} ({error.strerror}): {cure}, then repeat the command to go on", 1
        )
    except ValueError as error:
        return _say(str(error), 1)
    return _say(f"{args.count} samples in {args.out} ({made} new, {args.count - made} were there)", 0)


def _say(sentence: str, code: int) -> int:
    (sys.stderr if code else sys.stdout).write(sentence + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
