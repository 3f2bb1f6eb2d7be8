"""Surface normals by a network that knows where it is unsure, trained on ScanNet.

Bae et al. 2021, "Estimating and Exploiting the Aleatoric Uncertainty in Surface Normal Estimation". Red
grows to the left, green upwards, blue to the front.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, build, quiet
from annotator.networks.tensors import IMAGENET_MEAN, IMAGENET_STD, normalized, to_batch, to_grey
from annotator.util import HWC3, resize_image

# The published network; the ratios only matter in training.
SETTINGS = {"architecture": "BN", "sampling_ratio": 0.4, "importance_ratio": 0.7}


def load(files: list[Path], device: torch.device) -> Annotate:
    """Normals as (n + 1) / 2 in red, green, blue, by the network in the one file."""
    network = build(make, files[0], device)

    def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
        return normals(network, resize_image(HWC3(image), resolution), device)

    return annotate


def make() -> nn.Module:
    """The network without weights: EfficientNet-B5 and a decoder."""
    module = auxiliary("normalbae.nets.NNET")
    with quiet():
        return module.NNET(SimpleNamespace(**SETTINGS))


def normals(network: nn.Module, picture: np.ndarray, device: torch.device) -> np.ndarray:
    """Normals of `picture`, uint8 [H W 3] with sides that are multiples of 32: uint8 [H W 3]."""
    batch = normalized(to_batch(picture, device), IMAGENET_MEAN, IMAGENET_STD)
    finest = network(batch)[0][-1][0, :3]  # [3 H W]; the fourth channel is how sure it is
    return to_grey((finest + 1) / 2).transpose(1, 2, 0)
