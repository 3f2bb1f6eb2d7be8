"""Which of some known shapes is a mask: the one whose examples, moved and scaled, cover it best."""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

SIDE = 48  # of a normalised mask, pixels
AREA = 0.2  # of the normalised mask's area: what is long and thin must still fit inside
ALIKE = 0.8  # intersection over union below which a mask is none of the shapes


def normalised(mask: np.ndarray) -> np.ndarray:
    """A mask, bool [H W], moved to the middle and scaled to one area: bool [SIDE SIDE]. Empty stays empty."""
    area = np.count_nonzero(mask)
    if not area:
        return np.zeros((SIDE, SIDE), bool)
    scale = SIDE * np.sqrt(AREA / area)
    ys, xs = np.nonzero(mask)
    middle = (SIDE - 1) / 2
    move = np.array([[scale, 0, middle - scale * xs.mean()], [0, scale, middle - scale * ys.mean()]])
    return cv2.warpAffine(mask.astype(np.float32), move, (SIDE, SIDE)) > 0.5


class ShapeReader:
    """Names shapes by examples of each, masks bool [H W] of any size and place."""

    def __init__(self, examples: Mapping[str, Iterable[np.ndarray]]) -> None:
        pairs = [(name, normalised(mask).ravel()) for name, masks in examples.items() for mask in masks]
        self._names = [name for name, _ in pairs]
        self._masks = np.stack([mask for _, mask in pairs]).astype(np.float32)  # [n SIDE * SIDE]

    def __call__(self, mask: np.ndarray) -> str | None:
        """The shape that a mask (bool [H W]) shows, None where it resembles no example."""
        shown = normalised(mask).ravel().astype(np.float32)
        both = self._masks @ shown
        ious = both / np.maximum(self._masks.sum(axis=1) + shown.sum() - both, 1)
        best = int(ious.argmax())
        return self._names[best] if ious[best] >= ALIKE else None
