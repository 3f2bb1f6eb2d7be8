"""FD-DINOv2 (Stein et al. 2023): the Fréchet distance of features that were learned without labels.

Their order of models agrees better with people's than Inception's. The network is transformers' DINOv2
ViT-L/14 from a local folder, its feature the class token after the last norm; pictures come to 224 x 224,
whatever their shape, by Pillow's antialiased bicubic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metrics.distances import frechet_distance
from eval.metrics.inception import SMALLER
from eval.metrics.metric import Compute, Feature, Picture, SetMetric, Tools

SIDE = 224
SIZE = 1024
FLOOR = 2048  # pictures a side; the same as FID's, so that one set serves both
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def open_dinov2(tools: Tools) -> Compute:
    """The function that gives a class token a picture."""
    import torch
    from transformers import Dinov2Model

    from eval.metrics.networks import bicubic, normalised, to_tensor
    from ldm.util import pick_device

    device = pick_device(tools.device)
    net = Dinov2Model.from_pretrained(tools.weights, local_files_only=True).eval().to(device)

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        levels = to_tensor(bicubic(one.image, SIDE) for one in pictures)
        return net(pixel_values=normalised(levels, MEAN, STD).to(device)).pooler_output.cpu().numpy()

    return compute


FD_DINOV2 = SetMetric(
    "FD-DINOv2", "", "lower",
    Feature("dinov2", SIZE, open_dinov2, network="dinov2", dtype="<f4"),
    frechet_distance, "224 pixels, Pillow bicubic", floor=FLOOR, smaller=SMALLER,
)  # fmt: skip
