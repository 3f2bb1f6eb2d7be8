"""What a request gives the model to go by: control maps and text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cldm.controls import annotate, get_control
from cldm.request import Request
from ldm.modules.encoders.modules import AbstractEncoder
from ldm.modules.encoders.prompt import encode_prompts


def control_maps(image: np.ndarray | Sequence[np.ndarray], request: Request) -> list[np.ndarray]:
    """One map, uint8 [H W 3], a control of a complete `request`, all of one size.

    image: one for all controls or one for each. Raises ValueError when their number or shape does not fit.
    """
    images = [image] if isinstance(image, np.ndarray) else list(image)
    controls = request.controls
    if len(images) == 1:
        images *= len(controls)
    if len(images) != len(controls):
        given = f"{len(images)} pictures for {len(controls)} controls"
        raise ValueError(f"{given}: give one picture for all, or one for each")
    maps = [
        annotate(c.control, picture, request.resolution, preprocess=c.preprocess, **c.params)
        for c, picture in zip(controls, images, strict=True)
    ]
    sizes = {one.shape[:2] for one in maps}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"the control maps differ in size ({listed}): crop the pictures to one shape")
    return maps


def encode_texts(embedder: AbstractEncoder, prompts: list[str], request: Request) -> tuple[Tensor, Tensor]:
    """Embeddings [n, m, d] of `prompts`, and of as many negative prompts of `request`, of equal length."""
    deepest = max((get_control(c.control).clip_skip for c in request.controls), default=1)
    clip_skip = request.clip_skip or (deepest if deepest > 1 else None)
    unique = [*dict.fromkeys([*prompts, request.negative_prompt])]
    encoded = encode_prompts(embedder, unique, clip_skip=clip_skip)
    negative = encoded[unique.index(request.negative_prompt)]
    return encoded[[unique.index(one) for one in prompts]], negative.expand(len(prompts), -1, -1)
