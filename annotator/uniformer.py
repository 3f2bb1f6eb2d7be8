"""The published door to ADE20K's classes: `UniformerDetector()(image)`.

UperNet on ConvNeXt sees them here: what was published needs mmcv, which today's Python has no packages of.
"""

from pathlib import Path

import numpy as np
import torch

from annotator.class_colors import ADE20K
from annotator.networks import segmentation
from annotator.registry import files_of
from annotator.util import HWC3

SIDE = 512  # that the network was trained on


class UniformerDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        files = files_of("upernet_ade20k", folder)
        self.classify = segmentation.segmenter(files[0], torch.device(device), ADE20K)

    @torch.inference_mode()
    def __call__(self, img: np.ndarray) -> np.ndarray:
        """Class colours of RGB uint8 [H W 3]: uint8 [H W 3]."""
        return segmentation.colour(self.classify, HWC3(img), ADE20K, SIDE)
