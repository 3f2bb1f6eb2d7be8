"""What the model of things is measured by: drawings by people, shares with intervals, lines and colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.intervals import wilson
from eval.metrics.control import f1
from scenes.colours import contrast
from scenes.things.palette import PALETTE
from scenes.things.scene import ThingScene, render

COLOUR_BAR = 40.0  # of 255, mean over channels
NEAR = 3  # pixels at 128: a line this near counts as followed
GRID_COLUMNS = 8
DOODLES = Path("../shared/doodles")
PACK = "pack.ndjson"  # every word, a few drawings each
FILL = 0.8  # of the page that a drawing takes
BASE_SIDE, LINE = 512, 8.0  # a pen's width in pixels of a picture of that side
SHIFT = 4  # fixed-point bits of OpenCV's coordinates


@dataclass(frozen=True)
class Share:
    """A row: `hits` of `n`, the floor and the aim as shares; None where there is none."""

    name: str
    hits: float
    n: int
    floor: float | None = None
    aim: float | None = None

    @property
    def share(self) -> float:
        """hits / n."""
        return self.hits / max(1, self.n)

    def interval(self) -> tuple[float, float]:
        """Where the true share lies, 95 times of 100."""
        found = wilson(self.hits, self.n)
        return found.low, found.high

    def __str__(self) -> str:
        low, high = self.interval()
        bars = f"floor {self.floor:.0%} aim {self.aim:.0%}" if self.floor is not None else ""
        verdict = "" if self.floor is None else "passed" if self.share >= self.floor else "MISSED"
        return f"{self.name:<52}{self.share:>7.1%}  [{low:.1%}, {high:.1%}]  n={self.n:<5}{bars:<22}{verdict}"


def lines_followed(images: Sequence[np.ndarray], drawings: Sequence[np.ndarray]) -> np.ndarray:
    """F1 of an image's edges and the drawing's lines, each within `NEAR` pixels of the other, float [n]."""
    pairs = zip(images, drawings, strict=True)
    return np.array([f1(cv2.Canny(image, 60, 120) > 0, drawing > 127, NEAR) for image, drawing in pairs])


def colours_named(
    images: Sequence[np.ndarray], scenes: Sequence[ThingScene]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether thing and background have the colours that were said, bool [n] each; unsaid ones are right."""
    things, backgrounds = [], []
    for image, scene in zip(images, scenes, strict=True):
        cover = render(scene, len(image))[1]
        inside = cv2.erode(cover, np.ones((5, 5), np.uint8)) > 200
        outside = cv2.dilate(cover, np.ones((7, 7), np.uint8)) < 50
        colour = scene.things[0].colour
        things.append(colour is None or _is(image[inside], colour))
        backgrounds.append(not scene.said_background or _is(image[outside], scene.background))
    return np.array(things), np.array(backgrounds)


def _is(pixels: np.ndarray, name: str) -> bool:
    if not len(pixels):
        return True
    return contrast(tuple(np.median(pixels, axis=0).tolist()), PALETTE[name]) <= COLOUR_BAR


def save_grid(path: Path, tiles: Sequence[np.ndarray], columns: int = GRID_COLUMNS) -> None:
    """Tiles uint8 [H W 3] of one size, row by row, as one PNG."""
    blank = np.full_like(tiles[0], 255)
    tiles = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


@dataclass(frozen=True)
class Doodle:
    """A drawing by a person, of Quick, Draw!; strokes: polylines [n 2] in units of the page, centred."""

    word: str
    strokes: tuple[np.ndarray, ...]

    def draw(self, side: int, line: float = LINE) -> np.ndarray:
        """White lines on black, uint8 [side side]."""
        page = np.zeros((side, side), np.uint8)
        points = [np.rint((stroke * side - 0.5) * 2**SHIFT).astype(np.int32) for stroke in self.strokes]
        cv2.polylines(page, points, False, 255, max(1, round(line * side / BASE_SIDE)), cv2.LINE_AA, SHIFT)
        return page


def load_doodles(folder: Path, words: set[str]) -> list[Doodle]:
    """The drawings of these words, in the file's order; FileNotFoundError says what is missing."""
    file = folder / PACK
    if not file.exists():
        raise FileNotFoundError(f"there are no drawings by people in {file}: name their folder by --doodles")
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [Doodle(row["word"], _fitted(row["strokes"])) for row in rows if row["word"] in words]


def _fitted(strokes: list) -> tuple[np.ndarray, ...]:
    lines = [np.array(stroke[:2], np.float64).T for stroke in strokes]
    points = np.concatenate(lines)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = FILL / max(*(high - low), 1.0)
    return tuple((line - (low + high) / 2) * scale + 0.5 for line in lines)
