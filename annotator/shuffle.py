"""A picture whose parts are moved about by a random flow: its colours stay, its composition goes.

Two fields of smooth noise say for each place from which column and row it takes its colour (ControlNet 1.1's
content shuffle). The same seed moves a picture the same way.
"""

from __future__ import annotations

from types import ModuleType

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, resize_image

CELL = Param(256, 16, 1024, 16, "pixels: the size of parts that stay together")
PARAMS = {"seed": Param(0, 0, 2**32 - 1, 1, "another seed moves the parts elsewhere"), "cell": CELL}
Random = np.random.Generator | ModuleType  # numpy.random itself is the generator that old scripts seed


class ContentShuffleDetector:
    """The published callable; it draws from numpy's global generator, which published scripts seed."""

    def __call__(
        self, img: np.ndarray, h: int | None = None, w: int | None = None, f: int | None = None
    ) -> np.ndarray:
        """uint8 [H W 3], its parts moved about, as uint8 [h w 3] (default: its own size); f: see `CELL`."""
        size = h or img.shape[0], w or img.shape[1]
        return _shuffled(img, size, f or CELL.default, np.random)


def annotate(image: np.ndarray, *, resolution: int, seed: int = 0, cell: int = CELL.default) -> np.ndarray:
    """The shuffled picture at the target size: uint8 [H' W' 3]."""
    picture = resize_image(HWC3(image), resolution)
    return _shuffled(picture, picture.shape[:2], cell, np.random.default_rng(seed))


def _shuffled(image: np.ndarray, size: tuple[int, int], cell: int, random: Random) -> np.ndarray:
    height, width = image.shape[:2]
    columns, rows = (_noise(size, cell, random) * (side - 1) for side in (width, height))
    return cv2.remap(image, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)


def _noise(size: tuple[int, int], cell: int, random: Random) -> np.ndarray:
    """Smooth noise [h w] from 0 to 1, both of which it reaches; one random number for each cell."""
    height, width = size
    coarse = random.uniform(0, 1, (height // cell + 2, width // cell + 2, 1))
    smooth = cv2.resize(coarse, (width + 2 * cell, height + 2 * cell), interpolation=cv2.INTER_CUBIC)
    noise = smooth[cell : cell + height, cell : cell + width]
    noise = noise - noise.min()
    return noise / max(noise.max(), np.finfo(float).tiny)
