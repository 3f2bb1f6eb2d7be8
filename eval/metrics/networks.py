"""How pictures reach the networks that metrics look through: sides, levels, device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def bicubic(image: np.ndarray, side: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Pillow's antialiased bicubic to a square: uint8 [side side 3]; box: of the image, else all of it."""
    if image.shape[:2] == (side, side) and box is None:
        return image
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box))


def middle_square(image: np.ndarray) -> tuple[float, float, float, float]:
    """The largest square in the middle: left, top, right, bottom."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def to_tensor(images: Iterable[np.ndarray]) -> Tensor:
    """Arrays [H W 3] of one size as float [n 3 H W], levels as they are."""
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float()


def normalised(levels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Levels 0 to 255, [n 3 H W], as a network of the given mean and deviation (of 0 to 1) takes them."""
    centre, spread = (torch.tensor(v, device=levels.device)[None, :, None, None] for v in (mean, std))
    return (levels / 255 - centre) / spread
