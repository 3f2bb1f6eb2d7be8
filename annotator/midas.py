"""The published door to depth and normals: `MidasDetector()(image, a, bg_th)`, as in ControlNet 1.0.

Depth Anything V2 or DPT see it here, whichever is in models/annotators.
"""

from pathlib import Path

import numpy as np
import torch

from annotator.networks import depth
from annotator.registry import files_of
from annotator.util import HWC3


class MidasDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.see = depth.transformer(files_of("from_depth", folder)[0], torch.device(device))

    @torch.inference_mode()
    def __call__(
        self, input_image: np.ndarray, a: float = depth.FRONT, bg_th: float = 0.1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth uint8 [H W], near is white, and normals uint8 [H W 3] of RGB uint8 [H W 3].

        a: how much normals point to the front. bg_th: the part of all depth beyond which they do altogether.
        """
        nearness = self.see(HWC3(input_image))
        return depth.to_map(nearness), depth.normals_of(nearness, front=a, background=bg_th)
