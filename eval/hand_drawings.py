"""Drawings by people of our shapes: read, drawn as on a user's canvas, and what they enclose.

Quick, Draw!'s strokes: polylines of any size. Hands leave gaps and cross their own lines: a drawing encloses
what cannot be reached from outside once its gaps are bridged, by the thinnest pen that does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from scenes.shapes import SHAPES

PAGE = 512  # pixels of the canvas, in which line widths count
FILL = 0.7  # of the page that a drawing takes
SHIFT = 4  # fixed-point bits of OpenCV's coordinates
BRIDGES = (2, 4, 8, 12, 16, 24, 32)  # half widths of pens that bridge gaps, pixels
LEAST = 0.25  # of the drawing's convex hull that it must enclose: a star covers a third
MIN_HOLE = 0.02  # of the page: what is smaller is a loop of the line


@dataclass(frozen=True)
class HandDrawing:
    """What somebody drew when asked for `shape`; strokes: [n 2] in pixels of the page."""

    shape: str
    strokes: tuple[np.ndarray, ...]

    def canvas(self, width: float) -> np.ndarray:
        """Black lines of `width` pixels on white, uint8 [512 512 3]."""
        return cv2.cvtColor(255 - self.lines(width), cv2.COLOR_GRAY2RGB)

    def lines(self, width: float) -> np.ndarray:
        """White on black, uint8 [512 512]."""
        page = np.zeros((PAGE, PAGE), np.uint8)
        points = [np.rint(stroke * 2**SHIFT).astype(np.int32) for stroke in self.strokes]
        cv2.polylines(page, points, False, 255, max(1, round(width)), cv2.LINE_AA, SHIFT)
        return page

    def enclosed(self) -> np.ndarray | None:
        """What should be filled, bool [512 512]; None where the lines enclose nothing.

        Of a ring, its hole is left out.
        """
        hull = cv2.convexHull(np.concatenate(self.strokes).astype(np.float32))
        for reach in BRIDGES:
            ink = self.lines(2 * reach + 1) > 0
            inside = ~_outside(ink)
            square = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
            filled = cv2.erode(inside.astype(np.uint8), square) > 0
            if filled.sum() >= LEAST * cv2.contourArea(hull):
                return filled & ~_hole(inside & ~ink, square) if self.shape == "ring" else filled
        return None


def load_drawings(path: Path) -> list[HandDrawing]:
    """The drawings of our shapes in a file of JSON lines; FileNotFoundError or ValueError in one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no drawings by people in {path}: name their file by --drawings")
    drawings = list(_read(path))
    if not drawings:
        raise ValueError(f"{path} has no drawing of {', '.join(SHAPES)}")
    return drawings


def _read(path: Path) -> Iterator[HandDrawing]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            shape, strokes = row["shape"], [np.array(one[:2], np.float64).T for one in row["strokes"]]
            if shape in SHAPES:
                yield HandDrawing(shape, _fitted([one for one in strokes if len(one)]))
        except (ValueError, KeyError, TypeError, IndexError):
            raise ValueError(f"{path}:{number} is no drawing with shape and strokes") from None


def _fitted(strokes: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    points = np.concatenate(strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = FILL * PAGE / max(*(high - low), 1.0)
    return tuple((stroke - (low + high) / 2) * scale + PAGE / 2 for stroke in strokes)


def _outside(ink: np.ndarray) -> np.ndarray:
    """Which pixels can be reached from the corner, bool [H W]."""
    page = np.pad(ink, 1).astype(np.uint8)
    cv2.floodFill(page, None, (0, 0), 2)
    return page[1:-1, 1:-1] == 2


def _hole(free: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Of what lines part from the outside, the middle, as far as the middle of its line; empty for none."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(free.astype(np.uint8), connectivity=4)
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= MIN_HOLE * free.size]
    if len(large) < 2:
        return np.zeros_like(free)
    # A ring's band reaches further out on every side than its hole does.
    hole = min(large, key=lambda i: stats[i, cv2.CC_STAT_WIDTH] * stats[i, cv2.CC_STAT_HEIGHT])
    return cv2.dilate((labels == hole).astype(np.uint8), square) > 0
