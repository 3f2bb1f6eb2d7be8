"""Line drawings: of photographs by a small residual network, of anime pictures by a U-Net.

Chan et al. 2022, "Learning to generate line drawings that convey geometry and semantics" (a fine and a coarse
one), and the U-Net of Anime2Sketch (Xiang et al. 2021). All of them draw black on white; the map is the
negative.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, build
from annotator.networks.tensors import to_batch, to_grey
from annotator.util import HWC3, resize_image

RESIDUAL_BLOCKS = 3  # of the photographs' network
HALVINGS, WIDTH = 8, 64  # of the anime network
SIDE = 2**HALVINGS  # its sides must be multiples of this


def load(files: list[Path], device: torch.device) -> Annotate:
    """White lines on black for photographs, by the network in the one file."""
    network = build(make, files[0], device)
    return _annotator(partial(draw, network, device=device))


def load_anime(files: list[Path], device: torch.device) -> Annotate:
    """White lines on black for anime pictures, by the network in the one file."""
    network = build(make_anime, files[0], device)
    return _annotator(partial(draw_anime, network, device=device))


def make() -> nn.Module:
    """The photographs' network without weights."""
    return auxiliary("lineart").Generator(3, 1, RESIDUAL_BLOCKS)


def make_anime() -> nn.Module:
    """The anime network without weights."""
    norm = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return auxiliary("lineart_anime").UnetGenerator(3, 1, HALVINGS, WIDTH, norm_layer=norm)


def draw(network: nn.Module, picture: np.ndarray, device: torch.device) -> np.ndarray:
    """`picture`, uint8 [H W 3], drawn in black on white: uint8 [H W]."""
    return to_grey(network(to_batch(picture, device))[0, 0])


def draw_anime(network: nn.Module, picture: np.ndarray, device: torch.device) -> np.ndarray:
    """`picture`, uint8 [H W 3], drawn in black on white: uint8 [H W]."""
    height, width = picture.shape[:2]
    sides = tuple(-(-side // SIDE) * SIDE for side in (width, height))
    batch = to_batch(cv2.resize(picture, sides, interpolation=cv2.INTER_CUBIC), device) * 2 - 1
    paper = (network(batch)[0, 0] * 127.5 + 127.5).cpu().numpy()
    paper = cv2.resize(paper, (width, height), interpolation=cv2.INTER_CUBIC)
    return paper.clip(0, 255).astype(np.uint8)


def _annotator(draw_black: partial) -> Annotate:
    def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
        return HWC3(255 - draw_black(resize_image(HWC3(image), resolution)))

    return annotate
