"""The published door to line drawings of anime pictures: `LineartAnimeDetector()(image)`.

It draws black on white, because published scripts turn the map into its negative themselves.
"""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import lineart
from annotator.networks.libraries import build
from annotator.registry import files_of
from annotator.util import HWC3


class LineartAnimeDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = build(lineart.make_anime, files_of("lineart_anime", folder)[0], self.device)

    @torch.inference_mode()
    def __call__(self, input_image: np.ndarray) -> np.ndarray:
        """Black lines on white of RGB uint8 [H W 3]: uint8 [H W]."""
        return lineart.draw_anime(self.model, HWC3(input_image), self.device)
