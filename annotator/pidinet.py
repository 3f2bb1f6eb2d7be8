"""The published door to PiDiNet's edges: `PidiNetDetector()(image, safe=False)`."""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import pidinet
from annotator.networks.libraries import build
from annotator.registry import files_of
from annotator.util import HWC3


class PidiNetDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.netNetwork = build(pidinet.make, files_of("pidinet", folder)[0], self.device)

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray, safe: bool = False) -> np.ndarray:
        """White edges on black of RGB uint8 [H W 3] with sides that are multiples of 64: uint8 [H W]."""
        style = pidinet.SAFE if safe else pidinet.SOFT
        return pidinet.edges(self.netNetwork, HWC3(input_image), self.device, style)
