"""The published door to surface normals: `NormalBaeDetector()(image)`."""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import normalbae
from annotator.networks.libraries import build
from annotator.registry import files_of
from annotator.util import HWC3


class NormalBaeDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = build(normalbae.make, files_of("bae", folder)[0], self.device)

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray) -> np.ndarray:
        """Normals of RGB uint8 [H W 3] with sides that are multiples of 64: uint8 [H W 3]."""
        return normalbae.normals(self.model, HWC3(input_image), self.device)
