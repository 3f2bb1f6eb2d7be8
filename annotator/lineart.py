"""The published door to line drawings of photographs: `LineartDetector()(image, coarse)`.

It draws black on white, because published scripts turn the map into its negative themselves.
"""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import lineart
from annotator.networks.libraries import build
from annotator.registry import files_of
from annotator.util import HWC3


class LineartDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        fine, coarse = (files_of(name, folder)[0] for name in ("lineart", "lineart_coarse"))
        self.model, self.model_coarse = (build(lineart.make, file, self.device) for file in (fine, coarse))

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray, coarse: bool) -> np.ndarray:
        """Black lines on white of RGB uint8 [H W 3] with sides that are multiples of 64: uint8 [H W]."""
        return lineart.draw(self.model_coarse if coarse else self.model, HWC3(input_image), self.device)
