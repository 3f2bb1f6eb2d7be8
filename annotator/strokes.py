"""Line art without a network: what is darker than its surroundings, or a drawing turned to its negative.

`annotate_standard` is what the field calls "lineart standard": a difference of the picture and its blur that
keeps soft values, unlike the binary one for scribbles.
"""

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, resize_image

BLUR = Param(6.0, 1, 20, 0.5, "pixels of the blur; wider finds broader strokes")  # published, as all here
FAINT = Param(8, 0, 128, 1, "differences up to it do not count when the ink is measured")
STANDARD_PARAMS = {"blur": BLUR, "faint": FAINT}
INK_GREY = 127  # an ordinary stroke of the picture becomes half white, stronger ones become white
WEAKEST_INK = 16  # of 255: grain of an empty picture is not raised to strokes


def annotate_standard(
    image: np.ndarray, *, resolution: int, blur: float = BLUR.default, faint: int = FAINT.default
) -> np.ndarray:
    """Dark strokes as light ones on black, soft: uint8 [H' W' 3], grey."""
    picture = resize_image(HWC3(image), resolution).astype(np.float32)
    darker = (cv2.GaussianBlur(picture, (0, 0), blur) - picture).min(axis=2).clip(0)  # [H' W']
    strokes = darker[darker > faint]
    ink = max(WEAKEST_INK, float(np.median(strokes)) if strokes.size else 0)
    return HWC3((darker / ink * INK_GREY).clip(0, 255).astype(np.uint8))


def annotate_negative(image: np.ndarray, *, resolution: int) -> np.ndarray:
    """A drawing of dark lines on white paper as white lines on black: uint8 [H' W' 3], grey."""
    grey = cv2.cvtColor(resize_image(HWC3(image), resolution), cv2.COLOR_RGB2GRAY)
    return HWC3(255 - grey)
