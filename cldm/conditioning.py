"""What a request gives the model to go by: control maps and hints, text embeddings, the initial image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from annotator.util import HWC3, RGBA, blend_over, target_size
from cldm.cldm import ControlLDM
from cldm.controls import AT_HOME, Annotators, Detection, annotate, get_control
from cldm.request import ControlInput, Request
from ldm.image import image_to_hint, image_to_model
from ldm.modules.encoders.modules import AbstractEncoder
from ldm.modules.encoders.prompt import encode_prompts

HALF_WHITE = 127  # a lighter pixel of a mask is painted anew


def control_maps(
    image: np.ndarray | Sequence[np.ndarray], request: Request, annotators: Annotators = AT_HOME
) -> list[np.ndarray]:
    """One map, uint8 [H W 3], a control of a complete `request`, all of one size.

    image: one for all controls or one for each. Raises ValueError when their number or shape does not fit.
    """
    images = [image] if isinstance(image, np.ndarray) else list(image)
    controls = request.controls
    if len(images) == 1:
        images *= len(controls)  # one picture for all
    if len(images) != len(controls):
        given = f"{len(images)} pictures for {len(controls)} controls"
        raise ValueError(f"{given}: give one picture for all, or one for each")
    maps = [
        annotate(control.control, one, request.resolution, _detection(control), annotators)
        for control, one in zip(controls, images, strict=True)
    ]
    sizes = {one.shape[:2] for one in maps}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"the control maps differ in size ({listed}): crop the pictures to one shape")
    return maps


def _detection(control: ControlInput) -> Detection:
    return Detection(control.detector, control.params, control.preprocess)


def control_hint(control: ControlInput, control_map: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
    """The map as a branch takes it, [1, 3, H, W]; pixels of `mask` have the value that `control` says."""
    hint, masked = image_to_hint(control_map, 1), get_control(control.control).masked_hint
    if masked is not None and mask is not None:
        hint[..., torch.from_numpy(mask)] = masked
    return hint


def encode_texts(embedder: AbstractEncoder, prompts: list[str], request: Request) -> tuple[Tensor, Tensor]:
    """Embeddings [n, m, d] of `prompts`, and of as many negative prompts of `request`, of equal length."""
    deepest = max((get_control(c.control).clip_skip for c in request.controls), default=1)
    clip_skip = request.clip_skip or (deepest if deepest > 1 else None)  # None: the encoder's own, to the bit
    unique = [*dict.fromkeys([*prompts, request.negative_prompt])]  # one call: all have as many chunks
    encoded = encode_prompts(embedder, unique, clip_skip=clip_skip)
    negative = encoded[unique.index(request.negative_prompt)]
    return encoded[[unique.index(one) for one in prompts]], negative.expand(len(prompts), -1, -1)


def encode_image(model: ControlLDM, image: np.ndarray) -> Tensor:
    """Scaled latents, float32 [1, c, h, w], of uint8 [H W 3]."""
    pixels = image_to_model(image).to(next(model.first_stage_model.parameters()))
    return model.get_first_stage_encoding(model.encode_first_stage(pixels).mode()).float()


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image`, uint8 [H W], [H W 3] or [H W 4], as RGB of `size` (height, width).

    An image of another shape loses what sticks out at both ends; nothing is squeezed by more than the
    rounding of sides to multiples of 64 does.
    """
    pixels = HWC3(image)
    if target_size(*pixels.shape[:2], min(size)) != size:
        pixels = _crop(pixels, size)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`mask`, white where an image is to be painted anew, as bool [H W] of `size` (height, width).

    What is transparent stays: masks are often a white brush on an empty layer.
    """
    if mask.ndim == 3 and mask.shape[2] == RGBA:
        mask = blend_over(mask, 0)
    return fit_image(mask, size)[..., 0] > HALF_WHITE


def _crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image [H W 3], of the shape of `size`."""
    scale = min(have / want for have, want in zip(image.shape, size, strict=False))
    kept = [max(1, round(want * scale)) for want in size]
    top, left = ((have - keep) // 2 for have, keep in zip(image.shape, kept, strict=False))
    return image[top : top + kept[0], left : left + kept[1]]
