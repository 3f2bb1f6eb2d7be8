"""How like its truth a picture is, pixel by pixel: PSNR, SSIM, colours.

Only meaningful where one right answer exists: a ground truth, or the same seed before a change of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.metric import Compute, Feature, PictureMetric, Tools

if TYPE_CHECKING:  # torch takes a second to import; who only wants --help should not wait for it
    from torch import Tensor

DATA_RANGE = 255.0  # of uint8 images
MIN_SIDE = 12  # SSIM's window is 11 pixels wide


def psnr(images: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair in dB, float [n]; equal images give infinity.

    images, targets: n arrays uint8 [H W 3] of one size.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _batches(images, targets)
    ratios = peak_signal_noise_ratio(first, second, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3))
    return ratios.numpy()


def ssim(images: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Structural similarity of each pair (Wang et al. 2004), float [n]; 1, within 0.001, for equal images.

    images, targets: n arrays uint8 [H W 3] of one size, at least 12 pixels a side. The rounding comes from
    float32 in plain regions; float64 costs fifty times as long and moves no median by more.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _batches(images, targets)
    if min(first.shape[2:]) < MIN_SIDE:
        raise ValueError(f"SSIM needs images of {MIN_SIDE} pixels or more, got {tuple(first.shape[2:])}")
    return structural_similarity_index_measure(first, second, data_range=DATA_RANGE, reduction="none").numpy()


def colour_difference(images: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Mean absolute difference over pixels and channels of each pair, float [n], 0 to 255.

    images, targets: n arrays uint8 [H W 3], each pair of one size.
    """
    pairs = zip(images, targets, strict=True)
    return np.array([np.abs(one.astype(np.int16) - other).mean() for one, other in pairs])


def _batches(images: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    import torch

    if len(images) != len(targets) or not len(images):
        raise ValueError(f"{len(images)} images and {len(targets)} targets: give one target for each image")
    shapes = {image.shape for image in (*images, *targets)}
    if len(shapes) > 1 or {image.dtype for image in (*images, *targets)} != {np.dtype(np.uint8)}:
        raise ValueError(f"images must be uint8 of one size, got sizes {sorted(shapes)}")
    first, second = (torch.from_numpy(np.stack(group)).float() for group in (images, targets))
    return first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2)  # [n 3 H W]


def _each_pair(measure: Callable[..., np.ndarray]) -> Callable[[Tools], Compute]:
    """Pair by pair, as pairs may be of many sizes."""
    return lambda tools: lambda pictures: np.array([measure([one.image], [one.truth]) for one in pictures])


PSNR = PictureMetric(
    "PSNR", "dB", "higher", Feature("psnr", 1, _each_pair(psnr), ("truth",)), statistic="median"
)
SSIM = PictureMetric(
    "SSIM", "", "higher", Feature("ssim", 1, _each_pair(ssim), ("truth",)), statistic="median"
)
COLOUR_ERROR = PictureMetric(
    "colour error", "/255", "lower", Feature("colour_error", 1, _each_pair(colour_difference), ("truth",))
)
