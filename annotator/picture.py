"""The picture as its own map: at the target size, or sampled down and up again.

Tile models add detail to what a picture shows; the coarser its pixels, the more they may invent.
"""

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, resize_image

FACTOR = Param(1.0, 1, 8, 0.5, "how much coarser the map is than the picture; 1 leaves it as it is")
PARAMS = {"factor": FACTOR}


def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
    """The picture itself at the target size: uint8 [H' W' 3]."""
    return resize_image(HWC3(image), resolution)


def annotate_tile(image: np.ndarray, *, resolution: int, factor: float = FACTOR.default) -> np.ndarray:
    """The picture with `factor` times fewer pixels a side, enlarged again: uint8 [H' W' 3]."""
    picture = annotate(image, resolution=resolution)
    if factor == 1:
        return picture
    height, width = picture.shape[:2]
    size = max(1, round(width / factor)), max(1, round(height / factor))
    coarse = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LANCZOS4)
