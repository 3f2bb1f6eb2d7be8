"""Straight lines without a network: OpenCV's line segment detector.

Grompone von Gioi et al. 2010, "LSD: A Fast Line Segment Detector". It finds borders between light and dark:
a filled square has four, a square drawn with a pen has one on either side of each stroke.
"""

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, resize_image

SHORTEST = Param(20, 0, 1000, 1, "pixels: shorter lines are left out")
PARAMS = {"shortest": SHORTEST}


def annotate(image: np.ndarray, *, resolution: int, shortest: int = SHORTEST.default) -> np.ndarray:
    """Straight lines of one pixel, white on black: uint8 [H' W' 3], 0 or 255."""
    grey = cv2.cvtColor(resize_image(HWC3(image), resolution), cv2.COLOR_RGB2GRAY)
    canvas = np.zeros_like(grey)
    for x0, y0, x1, y1 in segments(grey, shortest):
        cv2.line(canvas, (round(x0), round(y0)), (round(x1), round(y1)), 255, 1)
    return HWC3(canvas)


def segments(grey: np.ndarray, shortest: float) -> list[tuple[float, ...]]:
    """Ends x0, y0, x1, y1 of the straight lines in uint8 [H W] that are at least `shortest` pixels long."""
    found, *_ = cv2.createLineSegmentDetector().detect(grey)
    ends = np.zeros((0, 4)) if found is None else found.reshape(-1, 4)
    lengths = np.hypot(ends[:, 2] - ends[:, 0], ends[:, 3] - ends[:, 1])
    return [tuple(map(float, one)) for one in ends[lengths >= shortest]]
