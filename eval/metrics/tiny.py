"""A Fréchet distance that needs no download: latents of the shipped tiny model's own encoder.

It sees what the tiny model's pictures are made of, plain shapes in plain colours, and is no FID: its numbers
compare pictures of this project with each other and with nothing else. Latents are pooled to how much they
change from place to place, across and down: 16 numbers, so that 200 pictures a side are enough for a
covariance. Their plain averages would follow colours alone, which vary so much from scene to scene that blur
and a missing shape are lost among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metrics.distances import frechet_distance
from eval.metrics.metric import Compute, Feature, Picture, SetMetric, Tools

SIDE = 128  # the model's own
SIZE = 16  # mean and root mean square of 4 channels' steps, across and down
FLOOR = 200
PREFIX = "first_stage_model."


def open_encoder(tools: Tools) -> Compute:
    """The function that gives the pooled latent of a picture."""
    import torch

    from checkpoints.load import read_state_dict
    from eval.metrics.networks import bicubic
    from ldm.config import build_part, model_settings
    from ldm.image import image_to_model
    from ldm.util import pick_device

    config = tools.weights.with_suffix(".yaml")
    autoencoder = build_part(model_settings(config)["params"]["first_stage_config"], config)
    state = read_state_dict(tools.weights).items()
    autoencoder.load_state_dict(
        {name.removeprefix(PREFIX): value for name, value in state if name.startswith(PREFIX)}
    )
    device = pick_device(tools.device)
    autoencoder = autoencoder.eval().to(device)

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        pixels = torch.cat([image_to_model(bicubic(one.image, SIDE)) for one in pictures])
        latents = autoencoder.encode(pixels.to(device)).mode()  # [n 4 16 16]
        steps = (latents.diff(dim=axis).abs().flatten(2) for axis in (2, 3))
        pooled = [part for one in steps for part in (one.mean(dim=2), one.square().mean(dim=2).sqrt())]
        return torch.cat(pooled, dim=1).double().cpu().numpy()  # [n 16]

    return compute


FD_TINY = SetMetric(
    "FD tiny", "", "lower",
    Feature("tiny", SIZE, open_encoder, network="tiny"),
    frechet_distance, "128 pixels, Pillow bicubic", floor=FLOOR, draws=500,
)  # fmt: skip
