"""Straight lines by M-LSD: a network that sees the middle of each segment and where it ends.

Gu et al. 2022, "Towards Light-Weight and Real-Time Line Segment Detection". The network works at half the
size of the picture: channel 0 tells the middles, the next four the way from there to both ends. Its fourth
input channel is constant.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, build
from annotator.networks.tensors import to_batch
from annotator.util import HWC3, resize_image

HALVED = 2  # pixels of the picture for one of the network's
MOST_SEGMENTS = 200  # published
OWN_MIDDLE = 3  # pixels around a middle that hold no other


def load(files: list[Path], device: torch.device) -> Annotate:
    """White lines of one pixel on black, by the network in the one file."""
    network = build(make, files[0], device)

    def annotate(image: np.ndarray, *, resolution: int, score: float, length: float) -> np.ndarray:
        picture = resize_image(HWC3(image), resolution)
        return HWC3(draw(segments(network, picture, device, score, length), picture.shape[:2]))

    return annotate


def make() -> nn.Module:
    """The network without weights: the large one, on MobileNetV2."""
    return auxiliary("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()


def segments(
    network: nn.Module, picture: np.ndarray, device: torch.device, score: float, length: float
) -> np.ndarray:
    """Ends of the line segments in `picture`, uint8 [H W 3]: float [n 4] as x, y, x, y in pixels.

    Those with more than `score` (0 to 1) and longer than `length`, in pixels of the network.
    """
    colours = to_batch(picture, device) * 2 - 1
    ones = torch.full_like(colours[:, :1], 1 / 127.5 - 1)  # published: a 1 beside the bytes of colour
    seen = network(torch.cat([colours, ones], dim=1))[0]  # [9, H/2, W/2]
    return HALVED * _decode(seen[0].sigmoid(), seen[1:5], score, length).cpu().numpy()


def draw(lines: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lines [n 4] of x, y, x, y in white on black: uint8 [H W] of `size` (height, width)."""
    canvas = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in lines.astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvas


def _decode(middles: Tensor, ends: Tensor, score: float, length: float) -> Tensor:
    peaks = middles * (F.max_pool2d(middles[None], OWN_MIDDLE, 1, OWN_MIDDLE // 2)[0] == middles)  # [h, w]
    scores, places = peaks.flatten().topk(min(MOST_SEGMENTS, peaks.numel()))
    rows, columns = places // peaks.shape[1], places % peaks.shape[1]
    ways = ends[:, rows, columns].T  # [n, 4]
    lines = torch.stack([columns, rows, columns, rows], dim=1) + ways
    long_enough = (ways[:, :2] - ways[:, 2:]).norm(dim=1) > length
    return lines[(scores > score) & long_enough]
