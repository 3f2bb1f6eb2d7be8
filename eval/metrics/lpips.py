"""LPIPS (Zhang et al. 2018): how far apart two pictures look to AlexNet, 0 for equal ones.

torchmetrics brings the network's frame and the learned heads; AlexNet's own weights come from a file.
Pictures keep their size, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metrics.metric import Compute, Feature, Picture, PictureMetric, Tools

SMALLEST = 63  # pixels a side: below it AlexNet's poolings leave nothing


def open_lpips(tools: Tools) -> Compute:
    """The function that measures pairs, each pair of one size."""
    import torch
    from torchmetrics.functional.image.lpips import _LPIPS

    from eval.metrics.networks import to_tensor
    from ldm.util import pick_device

    net = _LPIPS(net="alex", pnet_rand=True)  # random here, its own weights below; never fetched
    state = torch.load(tools.weights, weights_only=True, map_location="cpu")
    backbone = {name.removeprefix("features."): value for name, value in state.items()}
    for part in (getattr(net.net, f"slice{number}") for number in range(1, net.net.N_slices + 1)):
        part.load_state_dict({name: backbone[name] for name in part.state_dict()})
    device = pick_device(tools.device)
    net = net.to(device)

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        found = []
        for one in pictures:
            if min(one.image.shape[:2]) < SMALLEST:
                raise ValueError(
                    f"LPIPS needs pictures of {SMALLEST} pixels or more, got {one.image.shape[:2]}"
                )
            pair = (to_tensor([image]).to(device) / 127.5 - 1 for image in (one.image, one.truth))
            found.append([net(*pair).item()])
        return np.array(found)

    return compute


LPIPS = PictureMetric(
    "LPIPS (AlexNet)", "", "lower", Feature("lpips", 1, open_lpips, ("truth",), network="alexnet")
)
