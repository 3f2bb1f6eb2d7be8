"""The sketches of this folder: `python test_imgs/draw.py` draws circle.png, star.png and heart.png again.

A hand is a path with slow drift and a little tremor, a pen that presses harder here than there, and strokes
that do not quite meet. Everything is seeded: the same program gives the same bytes.
"""

from pathlib import Path

import cv2
import numpy as np

SIDE = 512
OVERSAMPLING = 4  # drawn larger and averaged down: soft edges, as on paper
STAMPS = 1500  # pen positions a stroke: closer than a pixel even on the longest path


def smooth_noise(rng: np.random.Generator, waves: float) -> np.ndarray:
    """A random curve [STAMPS] of the `waves` slowest sine waves, standard deviation about 1."""
    t = np.linspace(0, 1, STAMPS)
    k = np.arange(1, max(1, round(waves)) + 1)
    amplitude, phase = rng.normal(size=len(k)) / np.sqrt(len(k)), rng.uniform(0, 2 * np.pi, len(k))
    return np.sqrt(2) * (amplitude * np.sin(np.pi * t[:, None] * k + phase)).sum(axis=1)


def pull_pen(canvas: np.ndarray, path: np.ndarray, rng: np.random.Generator, width: float = 8) -> None:
    """Draw `path` ([n, 2], x and y in pixels of the finished picture) on `canvas` with an unsteady hand."""
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    there = np.linspace(0, len(path) - 1, STAMPS)
    points = np.stack(
        [np.interp(there, np.arange(len(path)), axis) for axis in path.T], axis=1
    )  # [STAMPS, 2]
    for axis in range(2):
        points[:, axis] += 2.2 * smooth_noise(rng, length / 240) + 0.6 * smooth_noise(rng, length / 25)
    lifted = np.minimum(1, np.linspace(0, 1, STAMPS) * 25) * np.minimum(1, np.linspace(1, 0, STAMPS) * 12)
    radius = width / 2 * (1 + 0.14 * smooth_noise(rng, length / 80)) * (0.55 + 0.45 * lifted)
    for (x, y), r in zip(points * OVERSAMPLING, radius * OVERSAMPLING, strict=True):
        cv2.circle(canvas, (round(x), round(y)), max(1, round(r)), 0, cv2.FILLED)


def circle(rng: np.random.Generator) -> list[np.ndarray]:
    """One stroke, a little egg-shaped, that overshoots its own beginning."""
    angle = np.linspace(-1.9, -1.9 + 2 * np.pi * 1.035, 400)
    radius = 152 + 5 * np.cos(2 * angle + 0.6) + np.linspace(-4, 5, 400)
    return [np.stack([262 + radius * np.cos(angle), 250 + 0.97 * radius * np.sin(angle)], axis=1)]


def star(rng: np.random.Generator) -> list[np.ndarray]:
    """Ten separate strokes that stop a little before or after the corners."""
    angle = -np.pi / 2 + 0.07 + np.pi / 5 * np.arange(11)
    radius = np.where(np.arange(11) % 2, 84, 196)
    corners = np.stack([286 + radius * np.cos(angle), 272 + radius * np.sin(angle)], axis=1)
    corners[:10] += rng.normal(0, 3, (10, 2))
    corners[10] = corners[0]
    strokes = []
    for start, end in zip(corners, corners[1:], strict=False):
        short = rng.uniform(-0.02, 0.05, 2)  # of the edge: 0.05 leaves a gap of about 6 pixels
        strokes.append(np.linspace(start + short[0] * (end - start), end - short[1] * (end - start), 50))
    return strokes


def heart(rng: np.random.Generator) -> list[np.ndarray]:
    """Two strokes, one for each half, from the notch to the tip."""
    t = np.linspace(0.04, np.pi - 0.02, 300)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    right = np.stack([248 + 10.2 * x, 240 - 10.4 * y], axis=1)
    left = np.stack([246 - 10.6 * x, 238 - 10.2 * y], axis=1)
    return [left, right]


def draw(strokes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Black strokes on white: uint8 [SIDE SIDE]."""
    canvas = np.full((SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), 255, np.uint8)
    for path in strokes:
        pull_pen(canvas, path, rng)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def main(folder: Path = Path(__file__).parent) -> int:
    """Write every sketch into `folder`."""
    for seed, make in enumerate([circle, star, heart]):
        rng = np.random.default_rng(seed)
        cv2.imwrite(str(folder / f"{make.__name__}.png"), draw(make(rng), rng))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
