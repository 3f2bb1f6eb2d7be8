"""Control maps of a scene: a scribble as by people, and canny, soft edges and silhouette of its picture.

A person's drawing has about a third of the lines of the art, none of them exact. So lines are left out, made
of few points, shaken, shifted and cut, by a hand that is the same for the whole drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from scenes.things.scene import ThingScene, lines, render
from scenes.things.strokes import simplified

BASE_SIDE = 512  # widths are pixels of a picture of this side
WIDTHS = (1.0, 24.0)
SUPERSAMPLE = 2
SHIFT = 4  # fixed-point bits of OpenCV's coordinates
OUTLINE_KEPT = 0.97
BINARY = 0.5  # share of maps in black and white, as annotators give them; renderings have soft edges
BINARY_THRESHOLD = 64


@dataclass(frozen=True)
class Hand:
    """How somebody draws. kept: share of the inner lines; the rest in units of the thing's size."""

    width: float = 4.0
    kept: float = 1.0
    coarse: float = 0.004  # how far a straight piece may leave the line
    wobble: float = 0.0
    misplaced: float = 0.0  # shift and growth of a single inner line
    gaps: float = 0.0  # share of a line that is missing
    plain: float = 0.0  # share of closed inner lines that become an ellipse, a box or a hull


EXACT, LOOSEST = Hand(), Hand(kept=0.05, coarse=0.04, wobble=0.025, misplaced=0.05, gaps=0.12)
WITH_GAPS = 0.4  # share of drawings


def random_hand(rng: np.random.Generator) -> Hand:
    """Anybody's hand, from the exact one to a child's."""
    haste = rng.random()  # 0: an exact drawing
    return Hand(
        width=float(np.exp(rng.uniform(*np.log(WIDTHS)))),
        kept=rng.uniform(LOOSEST.kept, EXACT.kept),
        coarse=EXACT.coarse + LOOSEST.coarse * haste * rng.random(),
        wobble=LOOSEST.wobble * haste * rng.random(),
        misplaced=LOOSEST.misplaced * haste * rng.random(),
        gaps=LOOSEST.gaps * rng.random() if rng.random() < WITH_GAPS else 0.0,
    )


def scribble(rng: np.random.Generator, scene: ThingScene, side: int, hand: Hand | None = None) -> np.ndarray:
    """White lines on black, uint8 [side side]."""
    hand = hand or random_hand(rng)
    canvas = np.zeros((side * SUPERSAMPLE,) * 2, np.uint8)
    thickness = max(1, round(hand.width * side / BASE_SIDE * SUPERSAMPLE))
    for thing in scene.things:
        drawn = _by_hand(rng, lines(thing), hand, thing.size)
        fixed = [np.rint((line * len(canvas) - 0.5) * 2**SHIFT).astype(np.int32) for line in drawn]
        cv2.polylines(canvas, fixed, False, 255, thickness, cv2.LINE_AA, SHIFT)
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)


def _by_hand(
    rng: np.random.Generator, strokes: list[np.ndarray], hand: Hand, size: float
) -> list[np.ndarray]:
    drawn = []
    for number, stroke in enumerate(strokes):
        if rng.random() >= (hand.kept if number else OUTLINE_KEPT):
            continue
        if hand.plain and number and _is_closed(stroke) and rng.random() < hand.plain:
            stroke = PLAIN_SHAPES[rng.integers(len(PLAIN_SHAPES))](stroke)
        line = _coarse(rng, stroke, hand.coarse * size)
        if number and hand.misplaced:
            middle = line.mean(axis=0)
            grown = np.exp(rng.normal(0, 4 * hand.misplaced, 2))
            line = middle + (line - middle) * grown + rng.normal(0, hand.misplaced * size, 2)
        if hand.wobble:
            line = line + _tremor(rng, len(line)) * hand.wobble * size
        drawn += _cut(rng, line, hand.gaps)
    return drawn


def _is_closed(line: np.ndarray) -> bool:
    return len(line) > 3 and np.allclose(line[0], line[-1])


def _ellipse(line: np.ndarray) -> np.ndarray:
    """The ellipse in a line's bounding box: what a child makes of a head or a wheel."""
    low, high = line.min(axis=0), line.max(axis=0)
    turn = np.linspace(0, 2 * np.pi, 40)[:, None]
    return (low + high) / 2 + (high - low) / 2 * np.concatenate([np.cos(turn), np.sin(turn)], axis=1)


def _box(line: np.ndarray) -> np.ndarray:
    corners = cv2.boxPoints(cv2.minAreaRect(line.astype(np.float32)))
    return np.concatenate([corners, corners[:1]])


def _hull(line: np.ndarray) -> np.ndarray:
    hull = cv2.convexHull(line.astype(np.float32))[:, 0]
    return np.concatenate([hull, hull[:1]])


PLAIN_SHAPES = (_ellipse, _box, _hull)


def _coarse(rng: np.random.Generator, line: np.ndarray, deviation: float) -> np.ndarray:
    """The same line through fewer points, then as evenly dense as a hand's; corners round or sharp."""
    closed = _is_closed(line)
    kept = simplified(line.astype(np.float32), deviation).astype(np.float64)
    if len(kept) > 3 and rng.random() < 0.6:
        for _ in range(2):  # Chaikin 1974: corners are cut twice
            first, second = kept[:-1] * 0.75 + kept[1:] * 0.25, kept[:-1] * 0.25 + kept[1:] * 0.75
            inner = np.stack([first, second], axis=1).reshape(-1, 2)
            kept = np.concatenate([inner, inner[:1]] if closed else [kept[:1], inner, kept[-1:]])
    return _dense(kept)


def _dense(line: np.ndarray, spacing: float = 0.02) -> np.ndarray:
    """Points about `spacing` apart along a polyline."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    count = max(2, int(np.ceil(length[-1] / spacing)) + 1)
    at = np.union1d(np.linspace(0, length[-1], count), length)
    return np.stack([np.interp(at, length, line[:, axis]) for axis in (0, 1)], axis=1)


def _tremor(rng: np.random.Generator, count: int) -> np.ndarray:
    """A smooth path of displacements [n 2] of about unit size."""
    knots = rng.normal(size=(max(2, count // 6 + 2), 2))
    at = np.linspace(0, len(knots) - 1, count)
    return np.stack([np.interp(at, np.arange(len(knots)), knots[:, axis]) for axis in (0, 1)], axis=1)


def _cut(rng: np.random.Generator, line: np.ndarray, gaps: float) -> list[np.ndarray]:
    """The line without one piece of it, or whole."""
    missing = int(gaps * len(line))
    if not missing:
        return [line]
    start = int(rng.integers(len(line) - missing + 1))
    return [piece for piece in (line[:start], line[start + missing :]) if len(piece) > 1]


def canny(target: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Edges one pixel wide of a picture, uint8 [H W]."""
    return cv2.Canny(target, 100, 200)


def soft_edges(target: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Edges as detectors with soft answers give them, uint8 [H W]."""
    smooth = cv2.GaussianBlur(target.astype(np.float32), (0, 0), 1.0)
    slopes = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    strength = np.hypot(*slopes).max(axis=2)
    return (255 * np.minimum(1.0, strength / max(1.0, float(strength.max())) * 1.5)).astype(np.uint8)


def silhouette(target: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The thing as a white area, uint8 [H W]."""
    return cover


def random_map(rng: np.random.Generator, scene: ThingScene, side: int) -> np.ndarray:
    """A control map of any kind, uint8 [side side]; mostly scribbles."""
    kind = rng.choice(len(OTHER_MAPS) + 1, p=[1 - sum(OTHER_MAPS.values()), *OTHER_MAPS.values()])
    if kind:
        return list(OTHER_MAPS)[kind - 1](*render(scene, side))
    drawing = scribble(rng, scene, side)
    if rng.random() < BINARY:
        return cv2.threshold(drawing, BINARY_THRESHOLD, 255, cv2.THRESH_BINARY)[1]
    return drawing


OTHER_MAPS = {canny: 0.08, soft_edges: 0.06, silhouette: 0.04}  # shares; the rest are scribbles
