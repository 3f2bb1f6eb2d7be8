"""The lines that a person would draw of a flat image: its silhouette, then the borders of its regions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from scenes.colours import RGB
from scenes.things.palette import LUMA

COLOURS = 7  # clusters that an icon's shades are reduced to
SAME_COLOUR = 14.0  # Lab units: nearer clusters are one region, as gradients are to a pen
MIN_REGION = 0.003  # of the image: smaller regions are no lines
MIN_LINE = 0.06  # of the side, in length
NEAR = 2  # pixels: a border this near to a line already there is that line
ROUGHNESS = 0.7  # pixels that a polyline may leave its border
OPAQUE = 128
RIM = np.ones((7, 7), np.uint8)


@dataclass(frozen=True)
class Anatomy:
    """What a flat image is made of.

    strokes: polylines [n 2] in units of the side, x before y, the silhouette first, then by size; a closed
    one repeats its first point. body: luma of the largest region, 0 to 255. rim: colour inside the border.
    """

    strokes: tuple[np.ndarray, ...]
    body: float
    rim: RGB


def anatomy(rgba: np.ndarray) -> Anatomy:
    """Take uint8 [H W 4] apart, H = W."""
    solid = (rgba[..., 3] >= OPAQUE).astype(np.uint8)
    regions = _regions(rgba, solid)
    inner = solid - cv2.erode(solid, RIM, borderValue=0)
    red, green, blue = rgba[..., :3][inner > 0].mean(axis=0).astype(int).tolist()
    body = rgba[..., :3][(regions[0] if regions else solid) > 0]
    return Anatomy(tuple(_strokes([solid, *regions])), float(np.median(body @ LUMA)), (red, green, blue))


def _strokes(regions: list[np.ndarray]) -> list[np.ndarray]:
    """The borders of masks uint8 [H W], each drawn once where two of them share it."""
    side = len(regions[0])
    taken = np.zeros((side, side), np.uint8)
    lines: list[np.ndarray] = []
    for region in regions:
        contours, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for contour in sorted(contours, key=len, reverse=True):
            new = _new_pieces(contour[:, 0], taken)
            lines += new
            for line in new:
                cv2.polylines(taken, [line], False, 1, 2 * NEAR + 1)
    return [(simplified(line, ROUGHNESS) + 0.5) / side for line in lines]


def _regions(rgba: np.ndarray, solid: np.ndarray) -> list[np.ndarray]:
    """Connected areas of one colour, uint8 masks, the largest first."""
    labels = _clusters(rgba, solid)
    masks = []
    for label in range(1, int(labels.max()) + 1):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        sizes = stats[1:count, cv2.CC_STAT_AREA]
        masks += [(size, (parts == i + 1).astype(np.uint8)) for i, size in enumerate(sizes)]
    least = MIN_REGION * solid.size
    return [mask for size, mask in sorted(masks, key=lambda one: -one[0]) if size >= least]


def _clusters(rgba: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Each pixel's colour cluster, uint8 [H W] from 1; 0 outside of the silhouette."""
    lab = cv2.cvtColor(rgba[..., :3].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.medianBlur(lab, 3)
    pixels = lab[solid > 0]
    count = min(COLOURS, len(np.unique(pixels.round(), axis=0)))
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 12, 0.5)
    _, found, centres = cv2.kmeans(pixels, count, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    distance = np.linalg.norm(centres[:, None] - centres, axis=-1)
    merged = np.argmax(distance < SAME_COLOUR, axis=1)  # the first centre near enough, perhaps itself
    labels = np.zeros(solid.shape, np.uint8)
    labels[solid > 0] = merged[found[:, 0]] + 1
    smooth = cv2.medianBlur(labels, 5)  # the seam of two colours is a shade of neither
    return np.where((solid > 0) & (smooth > 0), smooth, labels)


def _new_pieces(contour: np.ndarray, taken: np.ndarray) -> list[np.ndarray]:
    """Runs of a closed contour [n 2] that no line is near to, long enough to be drawn."""
    least = MIN_LINE * len(taken)
    fresh = taken[contour[:, 1], contour[:, 0]] == 0
    if fresh.all():
        closed = np.concatenate([contour, contour[:1]])
        return [closed] if len(closed) >= least else []
    if not fresh.any():
        return []
    first = int(np.argmin(fresh))
    fresh, contour = np.roll(fresh, -first), np.roll(contour, -first, axis=0)
    runs = np.split(np.arange(len(contour)), np.flatnonzero(np.diff(fresh)) + 1)
    return [contour[run] for run in runs if fresh[run[0]] and len(run) >= least]


def simplified(line: np.ndarray, deviation: float) -> np.ndarray:
    """A polyline [n 2] of fewer points, none farther than `deviation` from it; a closed one stays closed."""
    kept = cv2.approxPolyDP(line[:, None].astype(np.float32), deviation, False)[:, 0]
    first = line[:0] if (kept[0] == line[0]).all() else line[:1]
    last = line[:0] if (kept[-1] == line[-1]).all() else line[-1:]  # OpenCV drops one equal to the first
    return np.concatenate([first, kept, last]).astype(np.float32)
