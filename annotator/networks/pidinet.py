"""Soft edges by PiDiNet: convolutions of differences between pixels, small and quick.

Su et al. 2021, "Pixel Difference Networks for Efficient Edge Detection". As published, it gets blue, green,
red, in [0, 1].
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, build
from annotator.networks.tensors import to_batch, to_grey
from annotator.util import HWC3, resize_image, safe_step, scribbled

SOFT, SAFE, SCRIBBLE = "soft", "safe", "scribble"  # grey; grey in three levels; strokes of a pen


def load(files: list[Path], device: torch.device) -> Annotate:
    """White edges on black, by the network in the one file."""
    network = build(make, files[0], device)

    def annotate(image: np.ndarray, *, resolution: int, style: str) -> np.ndarray:
        return HWC3(edges(network, resize_image(HWC3(image), resolution), device, style))

    return annotate


def make() -> nn.Module:
    """The network without weights: the published table's fifth."""
    return auxiliary("pidi.model").pidinet()


def edges(network: nn.Module, picture: np.ndarray, device: torch.device, style: str) -> np.ndarray:
    """Edges of `picture`, uint8 [H W 3] with sides that are multiples of 8: uint8 [H W]."""
    strengths = network(to_batch(picture[:, :, ::-1], device))[-1][0, 0]  # [H W]
    if style == SAFE:
        strengths = torch.from_numpy(safe_step(strengths.cpu().numpy()))
    grey = to_grey(strengths)
    return scribbled(grey) if style == SCRIBBLE else grey
