"""Depth from one picture, near is white; and surface normals made of it, as ControlNet 1.0 did.

Yang et al. 2024, "Depth Anything V2"; Ranftl et al. 2021, "Vision Transformers for Dense Prediction" (DPT);
Bhat et al. 2023, "ZoeDepth". The first two see inverse depth without a unit, which is near as white already;
ZoeDepth sees metres. Every map is stretched to the whole range of grey.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, pretrained, processor, quiet
from annotator.networks.tensors import near_side, resized, to_batch
from annotator.util import HWC3, resize_image
from annotator.weights import fill, read_weights

Depth = Callable[[np.ndarray], np.ndarray]  # picture uint8 [H W 3] -> nearness float [H W], without a unit

VIT_SIDE, VIT_PATCH = 518, 14  # of the short side that Depth Anything sees, and what sides are multiples of
DPT_SIDE = 384  # transformers' DPT takes squares alone
ZOE_FAR, ZOE_NEAR = 85, 2  # percentiles of metres that become black and white, as published
ZOE_INDEX = "relative_position_index"  # in published files, computed by timm of today
# What the range from far to near counts as. The 1.0 detector took MiDaS' own numbers, whose range is of this
# order; other networks' numbers have another range each.
RELIEF = 1000.0
FRONT = 2 * np.pi  # published: how much of a normal points to the front
BACKGROUND = 0.4  # published: what is less near than this faces the front


def load(files: list[Path], device: torch.device) -> Annotate:
    """Depth by the transformers model in the one folder."""
    return _annotator(transformer(files[0], device))


def load_zoe(files: list[Path], device: torch.device) -> Annotate:
    """Depth by the ZoeDepth in the one file."""
    return _annotator(zoe(files[0], device))


def load_normals(files: list[Path], device: torch.device) -> Annotate:
    """Normals from the depth that the transformers model in the one folder sees."""
    see = transformer(files[0], device)

    def annotate(image: np.ndarray, *, resolution: int, background: float, swapped: bool) -> np.ndarray:
        normals = normals_of(see(resize_image(HWC3(image), resolution)), background=background)
        return np.ascontiguousarray(normals[:, :, ::-1]) if swapped else normals

    return annotate


def transformer(folder: Path, device: torch.device) -> Depth:
    """The inverse depth that the model of `folder` sees."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    network = pretrained(AutoModelForDepthEstimation, folder, device)
    prepare = processor(AutoImageProcessor, folder)

    def see(picture: np.ndarray) -> np.ndarray:
        shown = _shown(picture, network.config.model_type)
        batch = prepare(shown, do_resize=False, do_pad=False, return_tensors="pt").to(device)
        return _at_size(network(**batch).predicted_depth[0], picture)

    return see


def zoe(path: Path, device: torch.device) -> Depth:
    """The nearness that the ZoeDepth of the file at `path` sees: 1 at the second percentile of metres."""
    tensors = {name: one for name, one in read_weights(path).items() if not name.endswith(ZOE_INDEX)}
    network = fill(make_zoe(), tensors, path).to(device)

    def see(picture: np.ndarray) -> np.ndarray:
        metres = _at_size(network.infer(to_batch(picture, device))[0, 0], picture)
        near, far = np.percentile(metres, ZOE_NEAR), np.percentile(metres, ZOE_FAR)
        return np.clip((far - metres) / max(far - near, np.finfo(np.float32).tiny), 0, 1)

    return see


def make_zoe(**settings: Any) -> nn.Module:
    """The published ZoeDepth without weights, of BEiT-L; `settings` override its own."""
    with quiet():
        zoedepth = auxiliary("zoe.zoedepth.models.zoedepth.zoedepth_v1").ZoeDepth
        config = auxiliary("zoe.zoedepth.utils.config").get_config("zoedepth", "infer")
        return zoedepth.build_from_config(config | settings)


def to_map(nearness: np.ndarray) -> np.ndarray:
    """Nearness [H W] as grey uint8 [H W], from black where it is least to white; a plane is black."""
    return (_stretched(nearness) * 255).astype(np.uint8)


def normals_of(nearness: np.ndarray, *, front: float = FRONT, background: float = BACKGROUND) -> np.ndarray:
    """Normals (n + 1) / 2 in red, green, blue of a surface that is `nearness` [H W] high: uint8 [H W 3].

    front: how much a normal points there. background: the part of the range from which on a surface counts;
    what is farther away faces the front.
    """
    stretched = _stretched(nearness)
    surface = stretched * np.float32(RELIEF)
    slopes = [cv2.Sobel(surface, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1))]
    for slope in slopes:
        slope[stretched < background] = 0
    normals = np.stack([*slopes, np.full_like(surface, front)], axis=2)  # [H W 3]
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return (normals * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def _shown(picture: np.ndarray, kind: str) -> np.ndarray:
    if kind == "dpt":
        return resized(picture, (DPT_SIDE, DPT_SIDE))
    return near_side(picture, VIT_SIDE, VIT_PATCH)


def _annotator(see: Depth) -> Annotate:
    def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
        return HWC3(to_map(see(resize_image(HWC3(image), resolution))))

    return annotate


def _stretched(nearness: np.ndarray) -> np.ndarray:
    """[H W] with the least as 0 and the most as 1, in 32 bits."""
    low, high = float(nearness.min()), float(nearness.max())
    return np.float32((nearness - low) / max(high - low, np.finfo(np.float32).tiny))


def _at_size(depth: Tensor, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.resize(depth.float().cpu().numpy(), (width, height), interpolation=cv2.INTER_CUBIC)
