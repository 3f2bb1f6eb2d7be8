"""Canny edges: one-pixel white lines on black.

Canny 1986, "A Computational Approach to Edge Detection", as OpenCV implements it: on a colour image each
pixel takes the channel with the strongest gradient. The image is resized first, as in the published demo,
so that the thresholds mean the same for every camera.
"""

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, resize_image

LOW, HIGH = 100.0, 200.0  # the published demo's defaults
STRONGEST = 2040  # what the gradient of 8 bits can reach: Sobel's 4 x 255 along each axis
PARAMS = {
    "low": Param(LOW, 0, STRONGEST, 1, "an edge goes on above it"),
    "high": Param(HIGH, 0, STRONGEST, 1, "an edge starts above it"),
}


class CannyDetector:
    """The published callable: `CannyDetector()(img, low_threshold, high_threshold)`."""

    def __call__(self, img: np.ndarray, low_threshold: float, high_threshold: float) -> np.ndarray:
        """Edges of uint8 [H W 3] (or [H W]) as uint8 [H W], 0 or 255."""
        return cv2.Canny(img, low_threshold, high_threshold)


def annotate(image: np.ndarray, *, resolution: int, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """Edges of the resized image as uint8 [H' W' 3], 0 or 255.

    An edge starts where the gradient passes `high` and goes on while it passes `low`.
    ValueError unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f"low={low}, high={high}: canny needs 0 <= low < high, such as {LOW:g} and {HIGH:g}")
    return HWC3(CannyDetector()(resize_image(HWC3(image), resolution), low, high))
