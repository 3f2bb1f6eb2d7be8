"""The detectors of this build by name.

Each is a function `annotate(image, *, resolution, **params) -> map`: image uint8 [H W 3] (a drawing also [H
W 4]) at its own size, map uint8 [H' W' 3] with the sides that `annotator.util.target_size` gives. A new
detector is one module and one entry here.
"""

from collections.abc import Callable

import numpy as np

from annotator import canny, scribble

Annotate = Callable[..., np.ndarray]

ANNOTATORS: dict[str, Annotate] = {
    "canny": canny.annotate,
    "scribble": scribble.annotate,
    "scribble_xdog": scribble.annotate_xdog,
}
