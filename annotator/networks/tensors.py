"""Pictures as tensors and back, at sizes that networks take."""

import cv2
import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LONGEST = 4  # times the short side; a longer strip is squeezed, for attention grows with the square of a side


def to_batch(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [H W 3] as float [1 3 H W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None] / 255


def normalized(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[1 3 H W] in [0, 1], each channel less its mean and in units of its deviation."""
    middle, spread = (torch.tensor(values, device=batch.device)[:, None, None] for values in (mean, std))
    return (batch - middle) / spread


def to_grey(values: Tensor) -> np.ndarray:
    """[H W] in [0, 1] as uint8 [H W], rounded down as published; what lies outside is cut."""
    return (values.clamp(0, 1) * 255).cpu().numpy().astype(np.uint8)


def near_side(image: np.ndarray, side: int, multiple: int) -> np.ndarray:
    """The picture with its short side near `side`, both sides multiples of `multiple`: uint8 [H' W' 3].

    A strip is squeezed until its long side is LONGEST times the short one.
    """
    height, width = image.shape[:2]
    scale = side / min(height, width)
    sides = (min(length * scale, LONGEST * side) for length in (height, width))
    new_height, new_width = (max(1, round(length / multiple)) * multiple for length in sides)
    return resized(image, (new_height, new_width))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H W] or [H W c] at `size` (height, width): averaged where it shrinks, bicubic where it grows."""
    method = cv2.INTER_AREA if size[0] < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def scaled(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H W c] at `size` (height, width) as OpenPose's annotator does it: averaged, or by Lanczos."""
    shrinks = sum(size) < sum(array.shape[:2])
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    planes = [cv2.resize(plane, size[::-1], interpolation=method) for plane in cv2.split(array)]
    return np.stack(planes, axis=2)  # OpenCV's Lanczos knows at most four channels at once
