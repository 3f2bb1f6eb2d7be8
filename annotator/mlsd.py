"""The published door to straight lines: `MLSDdetector()(image, thr_v, thr_d)`."""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import mlsd
from annotator.networks.libraries import build
from annotator.registry import files_of
from annotator.util import HWC3


class MLSDdetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = build(mlsd.make, files_of("mlsd", folder)[0], self.device)

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray, thr_v: float, thr_d: float) -> np.ndarray:
        """White lines on black of RGB uint8 [H W 3] with sides that are multiples of 64: uint8 [H W]."""
        picture = HWC3(input_image)
        return mlsd.draw(mlsd.segments(self.model, picture, self.device, thr_v, thr_d), picture.shape[:2])
