"""Measures how well a model follows drawings by people, not those of our own generator.

    python -m eval people
    python -m eval people --config models/tiny_lite.yaml --drawings shapes.ndjson --count 50

Each drawing is put on a canvas as a user would draw it, black on white, in lines of {widths} pixels at 512,
read by the scribble detector and coloured by a prompt; then the fill is held against what the lines enclose.
Drawings are JSON lines of Quick, Draw!'s form with the name of one of our shapes; they are not part of this
project. Those that enclose nothing, however their gaps are bridged, are counted and left out.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bench.harness import Column, shown, table_of
from bench.origin import model_files, origin_of
from bench.results import Measurement, ResultsFile, by_subject
from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command, say
from eval.control import colour_error, filled_mask, mask_iou
from eval.fidelity import COLOUR_BAR, IOU_BAR
from eval.fill50k import ModelFiles, Settings, generate, held_out_scenes
from eval.hand_drawings import HandDrawing, load_drawings
from eval.intervals import bootstrap, wilson
from scenes.colours import COLOURS as RGB
from scenes.shape_scenes import Scene

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

WIDTHS = (4, 8, 16)
DRAWINGS = Path("../shared/doodles/shapes.ndjson")
STOPPED = "stopped; rows that are finished stay in --results"
COLUMNS = (
    Column("outline followed", "followed", shown),
    Column("both colours", "colours", shown),
    Column("median IoU", "median IoU", shown),
    Column("drawings", "median IoU", "{n}"),
)


@dataclass(frozen=True)
class PeopleFlags:
    """Which drawings, and what becomes of the numbers."""

    drawings: Path = flag(DRAWINGS, "JSON lines of drawings", metavar="FILE")
    count: int | None = flag(None, "so many of them, evenly spread (default: all)")
    results: Path | None = flag(None, "for the rows, JSON lines", metavar="FILE")
    grid: Path | None = flag(None, "write drawings with their pictures to this PNG", metavar="PNG")


@dataclass(frozen=True)
class Found:
    """One value a drawing: its shape, IoU with what it encloses, the worse of both colours' errors."""

    shapes: Sequence[str]
    iou: np.ndarray
    colour: np.ndarray

    def of(self, which: np.ndarray) -> Found:
        """Some of them."""
        return Found(
            [s for s, w in zip(self.shapes, which, strict=True) if w], self.iou[which], self.colour[which]
        )

    def rows(self, subject: str) -> Iterator[Measurement]:
        """Shares and the median, with their intervals."""
        n = len(self.iou)
        for quantity, right in {
            "followed": self.iou >= IOU_BAR,
            "colours": self.colour <= COLOUR_BAR,
        }.items():
            interval = wilson(int(right.sum()), n)
            yield Measurement(subject, quantity, float(right.mean()), "share", n, interval.low, interval.high)
        interval = bootstrap(self.iou, "median")
        yield Measurement(
            subject, "median IoU", float(np.median(self.iou)), "", n, interval.low, interval.high
        )


def measure(pipe: Pipeline, drawings: Sequence[HandDrawing], settings: Settings) -> Iterator[Measurement]:
    """A row for each width of the line, then one for each shape, all widths together."""
    kept = [(one, mask) for one in drawings if (mask := one.enclosed()) is not None]
    if len(kept) < len(drawings):
        say(f"{len(drawings) - len(kept)} of {len(drawings)} drawings enclose nothing and are left out")
    if not kept:
        raise ValueError("no drawing encloses anything")
    all_found = []
    for width in WIDTHS:
        images, scenes = draw(pipe, [one for one, _ in kept], width, settings)
        found = score(images, scenes, [mask for _, mask in kept])
        all_found.append(found)
        yield from found.rows(f"line of {width} px")
    names = [name for found in all_found for name in found.shapes]
    iou, colour = (np.concatenate([getattr(one, name) for one in all_found]) for name in ("iou", "colour"))
    together = Found(names, iou, colour)
    for shape in dict.fromkeys(names):
        yield from together.of(np.array([name == shape for name in names])).rows(shape)
    yield from together.rows("all")


def draw(
    pipe: Pipeline, drawings: Sequence[HandDrawing], width: float, settings: Settings
) -> tuple[list[np.ndarray], list[Scene]]:
    """A picture uint8 [H W 3] for each drawing, and the scene whose prompt it was made by."""
    from annotator.scribble import annotate

    colours = held_out_scenes(len(drawings), settings.seed)
    scenes = [replace(scene, shape=one.shape) for scene, one in zip(colours, drawings, strict=True)]
    maps = [annotate(one.canvas(width), resolution=settings.size) for one in drawings]
    return generate(pipe, scenes, maps, settings), scenes


def score(images: Sequence[np.ndarray], scenes: Sequence[Scene], masks: Sequence[np.ndarray]) -> Found:
    """Pictures against what their drawings enclose (bool [512 512]) and the colours of their prompts."""
    ious, errors = [], []
    for image, scene, page in zip(images, scenes, masks, strict=True):
        size = image.shape[1::-1]
        mask = cv2.resize(page.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        fill, background = RGB[scene.fill], RGB[scene.background]
        ious.append(mask_iou(filled_mask(image, fill, background), mask))
        errors.append(max(colour_error(image, *pair).mean() for pair in ((mask, fill), (~mask, background))))
    return Found([scene.shape for scene in scenes], np.array(ious), np.array(errors))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m eval people", __doc__.format(widths=", ".join(map(str, WIDTHS))))
    kinds = ModelFiles, Settings, PeopleFlags
    for kind in kinds:
        add_flags(parser, kind)
    args = parser.parse_args(argv)
    words = sys.argv[2:] if argv is None else argv
    command = shlex.join(["python", "-m", "eval", "people", *words])
    return run_command(lambda: _run(*(read_flags(kind, args) for kind in kinds), command), stopped=STOPPED)


def _run(files: ModelFiles, settings: Settings, flags: PeopleFlags, command: str) -> str:
    from ldm.util import pick_device

    if (flags.count is not None and flags.count < 1) or settings.batch < 1:
        raise ValueError(f"count={flags.count}, batch={settings.batch}: both must be 1 or more")
    drawings = spread_out(load_drawings(flags.drawings), flags.count)
    setting = {"config": files.config.name, "drawings": flags.drawings.name, "count": len(drawings)}
    setting |= {"size": settings.size, "steps": settings.steps, "seed": settings.seed}
    sources = [*model_files(files.config, files.weights), flags.drawings]
    origin = origin_of("eval people", setting, command, str(pick_device(files.device)), sources)
    results, found, pipe = ResultsFile(flags.results, origin), [], files.open()
    for one in measure(pipe, drawings, settings):
        found.append(one)
        results.keep(found, add=False)
    if flags.grid:
        _write_grid(pipe, drawings, settings, flags.grid)
    return table_of(COLUMNS, "drawings by people")(by_subject(found))


def spread_out(drawings: Sequence[HandDrawing], count: int | None) -> list[HandDrawing]:
    """`count` of them at even distances, as a file may have one shape after the other; all for None."""
    n = min(count or len(drawings), len(drawings))
    return [drawings[int(i)] for i in np.linspace(0, len(drawings) - 1, n)]


def _write_grid(pipe: Pipeline, drawings: Sequence[HandDrawing], settings: Settings, path: Path) -> None:
    """The first of each shape: drawing, what it encloses, picture."""
    from ldm.image import labelled_grid, write_png

    first = {one.shape: one for one in reversed(drawings) if one.enclosed() is not None}
    shown_ones = list(first.values())
    images, _ = draw(pipe, shown_ones, WIDTHS[1], settings)
    masks = [cv2.cvtColor(np.uint8(255 * one.enclosed()), cv2.COLOR_GRAY2RGB) for one in shown_ones]
    lines = [[one.canvas(WIDTHS[1]) for one in shown_ones], masks, images]
    write_png(path, labelled_grid(lines, ["drawing", "encloses", "picture"], list(first), cell=settings.size))
