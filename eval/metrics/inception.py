"""FID and KID: features of the Inception network of 2015 that all published numbers were made with.

Its weights are those that pytorch-fid and torch-fidelity publish, its frame is torch-fidelity's. How pictures
come to 299 x 299 changes FID by more than many a model does, so there are two of it: `fid` resizes as
TensorFlow 1 did (bilinear, no antialiasing, corners not aligned), as pytorch-fid and torch-fidelity do;
`fid_clean` by Pillow's antialiased bicubic, channel by channel in floats, as clean-fid (Parmar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eval.metrics.distances import frechet_distance, kid
from eval.metrics.metric import Compute, Feature, Picture, SetMetric, Tools

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE = 299
SIZE = 2048  # features: with fewer pictures than that a covariance is singular, and FID means nothing
SMALLER = ("kid", "cmmd")


def load_trunk(path: Path) -> nn.Module:
    """Inception up to its pooled features: levels as (x - 128) / 128, [n 3 299 299], to [n 2048 1 1].

    The library opens pickles without a guard, so it is handed one of ours: the tensors that torch found in
    `path` with weights_only.
    """
    import torch
    from torch import nn
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    safe = BytesIO()
    torch.save(torch.load(path, weights_only=True, map_location="cpu"), safe)
    safe.seek(0)
    net = FeatureExtractorInceptionV3("inception", [str(SIZE)], safe)
    return nn.Sequential(*list(net.children())[:-1]).eval()  # in the order of running; last is the classifier


def resize_as_tensorflow(image: np.ndarray) -> Tensor:
    """uint8 [H W 3] to float [1 3 299 299], levels 0 to 255."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    from eval.metrics.networks import to_tensor

    return interpolate_bilinear_2d_like_tensorflow1x(to_tensor([image]), (SIDE, SIDE), align_corners=False)


def resize_cleanly(image: np.ndarray) -> Tensor:
    """uint8 [H W 3] to float [1 3 299 299], levels 0 to 255 that are not rounded."""
    from eval.metrics.networks import to_tensor

    channels = (Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, 2, 0))
    resized = (np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in channels)
    return to_tensor([np.stack(list(resized), axis=2).clip(0, 255)])


def open_inception(tools: Tools, resize: Callable[[np.ndarray], Tensor]) -> Compute:
    """The function that gives 2,048 features a picture."""
    import torch

    from ldm.util import pick_device

    device = pick_device(tools.device)
    trunk = load_trunk(tools.weights).to(device)

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        levels = torch.cat([resize(one.image) for one in pictures])
        return trunk((levels.to(device) - 128) / 128).flatten(1).cpu().numpy()  # [n 2048]

    return compute


def _feature(name: str, resize: Callable[[np.ndarray], Tensor]) -> Feature:
    opened = partial(open_inception, resize=resize)
    return Feature(name, SIZE, opened, network="inception", dtype="<f4")


TF1, CLEAN = "TF1 bilinear", "Pillow bicubic"
INCEPTION, INCEPTION_CLEAN = (
    _feature("inception", resize_as_tensorflow),
    _feature("inception_clean", resize_cleanly),
)
FID = SetMetric("FID", "", "lower", INCEPTION, frechet_distance, TF1, floor=SIZE, smaller=SMALLER)
FID_CLEAN = SetMetric(
    "clean FID", "", "lower", INCEPTION_CLEAN, frechet_distance, CLEAN, floor=SIZE, smaller=SMALLER
)
KID = SetMetric("KID", "", "lower", INCEPTION, kid, TF1)
