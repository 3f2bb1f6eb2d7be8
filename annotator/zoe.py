"""The published door to ZoeDepth: `ZoeDetector()(image)`."""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import depth
from annotator.registry import files_of
from annotator.util import HWC3


class ZoeDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.see = depth.zoe(files_of("zoe", folder)[0], torch.device(device))

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray) -> np.ndarray:
        """Depth of RGB uint8 [H W 3], near is white: uint8 [H W]."""
        return depth.to_map(self.see(HWC3(input_image)))
