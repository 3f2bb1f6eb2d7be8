"""Shapes as closed outlines in unit coordinates: centre (0, 0), farthest point at distance 1, y downwards.

A shape is a list of rings, each [n 2] without a repeated last point. What lies inside is decided by the
even-odd rule, so the second circle of "ring" is a hole.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

Rings = list[np.ndarray]  # each [n 2] float

CONTOUR_POINTS = 160  # per ring: a chord's error is 2e-4 of the radius, a tenth of a pixel at 512
STAR_WAIST = 0.45  # inner radius; a drawn pentagram has 0.38, whose arms are too thin at 128 pixels
RING_HOLE = 0.55  # inner radius: band and hole are then about equally wide
CROSS_ARM = 0.36  # half the width of an arm whose half length is 1
CRESCENT_TIP = np.pi / 3  # angle of the tips on the outer circle
CRESCENT_BITE = 0.55  # centre of the circle that is cut out


def _arc(start: float, stop: float, radius: float = 1.0, centre_x: float = 0.0) -> np.ndarray:
    count = round(CONTOUR_POINTS * radius * abs(stop - start) / (2 * np.pi))
    angles = np.linspace(start, stop, count, endpoint=False)
    return np.stack([centre_x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _corners(count: int, first: float) -> np.ndarray:
    angles = first + 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Rings:
    points = _corners(10, -np.pi / 2)
    points[1::2] *= STAR_WAIST
    return [points]


def _heart() -> Rings:
    t = np.linspace(0, 2 * np.pi, 10 * CONTOUR_POINTS + 1)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    even = np.linspace(0, length[-1], CONTOUR_POINTS, endpoint=False)  # from the cleft, by the tip half-way
    return [np.stack([np.interp(even, length, x), -np.interp(even, length, y)], axis=1)]


def _crescent() -> Rings:
    tip = np.array([np.cos(CRESCENT_TIP), np.sin(CRESCENT_TIP)])
    bite = np.hypot(tip[0] - CRESCENT_BITE, tip[1])
    lower = np.arctan2(-tip[1], tip[0] - CRESCENT_BITE) + 2 * np.pi
    upper = np.arctan2(tip[1], tip[0] - CRESCENT_BITE)
    outer = _arc(CRESCENT_TIP, 2 * np.pi - CRESCENT_TIP)
    return [np.concatenate([outer, _arc(lower, upper, bite, CRESCENT_BITE)])]


def _cross() -> Rings:
    a = CROSS_ARM
    arm = np.array([[a, -a], [1, -a], [1, a]])
    quarter_turn = np.array([[0, -1], [1, 0]])
    return [np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)])]


def _normalised(rings: Rings) -> Rings:
    middle = (rings[0].min(axis=0) + rings[0].max(axis=0)) / 2
    reach = max(np.linalg.norm(points - middle, axis=1).max() for points in rings)
    return [(points - middle) / reach for points in rings]


def _densified(points: np.ndarray) -> np.ndarray:
    """Put points along every edge, evenly by length and on every corner: wobble and gaps need them."""
    edges = np.roll(points, -1, axis=0) - points
    lengths = np.linalg.norm(edges, axis=1)
    counts = np.maximum(1, np.round(CONTOUR_POINTS * lengths / lengths.sum())).astype(int)
    pieces = [p + e * np.arange(n)[:, None] / n for p, e, n in zip(points, edges, counts, strict=True)]
    return np.concatenate(pieces)


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Rings [n 2] of a shape, dense and evenly spaced, inside the unit circle. Treat them as read-only."""
    if shape not in OUTLINES:
        raise ValueError(f"shape {shape!r} is unknown: choose from {', '.join(OUTLINES)}")
    return tuple(_densified(points) for points in _normalised(OUTLINES[shape]()))


OUTLINES: dict[str, Callable[[], Rings]] = {
    "circle": lambda: [_arc(0, 2 * np.pi)],
    "square": lambda: [_corners(4, np.pi / 4)],  # standing on its side
    "triangle": lambda: [_corners(3, -np.pi / 2)],  # one corner up
    "star": _star,  # of five points, one up
    "heart": _heart,  # its tip down: the sextic curve x = 16 sin^3 t
    "ring": lambda: [_arc(0, 2 * np.pi), _arc(0, 2 * np.pi, RING_HOLE)],  # the fill lies between the circles
    "hexagon": lambda: [_corners(6, 0.0)],  # two corners left and right
    "crescent": _crescent,  # a disc from which a second disc is cut at the right
    "cross": _cross,  # four equal arms
}
SHAPES: tuple[str, ...] = tuple(OUTLINES)
