"""Scores of a set of generated images against what they should be: shape, colours, likeness.

The functions know images only, not how they were made, so that every table (control on and off, schemes,
branches, pruning) can be filled by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.control import RGB, colour_error, filled_mask, mask_iou
from eval.paired import psnr, ssim

# An image follows its outline: at 128 pixels about half a pixel of error all round a small shape.
IOU_BAR = 0.90
COLOUR_BAR = 25.0  # of 255, mean over a region and the three channels: a neighbouring name at worst


@dataclass(frozen=True)
class Truth:
    """What one image should be: target uint8 [H W 3], its fill as bool [H W], and the two named colours."""

    target: np.ndarray
    mask: np.ndarray
    fill: RGB
    background: RGB


@dataclass(frozen=True)
class FidelityScores:
    """One value an image, each float [n], in the order of the images.

    iou: of the filled region and the interior, 0 to 1. fill_error, background_error: mean absolute error of
    the colour in the region where it belongs, 0 to 255. psnr: dB. ssim: up to 1.
    """

    iou: np.ndarray
    fill_error: np.ndarray
    background_error: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray

    @property
    def followed(self) -> np.ndarray:
        """Which images follow their outline, bool [n]."""
        return self.iou >= IOU_BAR

    @property
    def coloured(self) -> np.ndarray:
        """Which images have both of the named colours, bool [n]."""
        return np.maximum(self.fill_error, self.background_error) <= COLOUR_BAR

    def summary(self) -> dict[str, float]:
        """Shares (0 to 1) and medians over the images."""
        return {
            "followed_share": float(self.followed.mean()),
            "coloured_share": float(self.coloured.mean()),
            "median_iou": float(np.median(self.iou)),
            "median_psnr": float(np.median(self.psnr)),
            "median_ssim": float(np.median(self.ssim)),
        }


def measure(images: Sequence[np.ndarray], truths: Sequence[Truth]) -> FidelityScores:
    """Score images uint8 [H W 3], each against its truth of the same size; errors as `eval.paired.psnr`."""
    targets = [truth.target for truth in truths]
    likeness = {"psnr": psnr(images, targets), "ssim": ssim(images, targets)}
    pairs = list(zip(images, truths, strict=True))
    return FidelityScores(
        iou=np.array([mask_iou(filled_mask(p, t.fill, t.background), t.mask) for p, t in pairs]),
        fill_error=np.array([colour_error(p, t.mask, t.fill).mean() for p, t in pairs]),
        background_error=np.array([colour_error(p, ~t.mask, t.background).mean() for p, t in pairs]),
        **likeness,
    )
