"""Pictures and masks for starting from, and keeping, parts of an existing picture."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.util import HWC3


def fit_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`picture`, uint8 [H W], [H W 3] or [H W 4], as RGB of `size` (height, width)."""
    return cv2.resize(HWC3(picture), size[::-1], interpolation=cv2.INTER_AREA)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`mask`, white where a picture is to be painted anew, as bool [H W] of `size` (height, width)."""
    return fit_picture(mask, size)[..., 0] > 127


def latent_keep(mask: np.ndarray, factor: int) -> Tensor:
    """[1, 1, h, w]: 1 where no pixel of a latent cell, `factor` pixels a side, is to be painted anew."""
    return 1 - F.max_pool2d(torch.from_numpy(mask)[None, None].float(), factor)


def paste(picture: np.ndarray, init: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`picture` where `mask`, `init` elsewhere: the autoencoder must not touch what is to be kept."""
    return np.where(mask[..., None], picture, init)
