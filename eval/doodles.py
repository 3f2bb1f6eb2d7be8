"""Drawings by people: Quick, Draw!'s strokes as images. They are measured with, never trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path("../shared/doodles")
PACK = "pack.ndjson"  # every word, a few drawings each
FILL = 0.8  # of the page that a drawing takes
BASE_SIDE, LINE = 512, 8.0  # a pen's width in pixels of a picture of that side
SHIFT = 4  # fixed-point bits of OpenCV's coordinates


@dataclass(frozen=True)
class Doodle:
    """strokes: polylines [n 2] in units of the page, centred."""

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
