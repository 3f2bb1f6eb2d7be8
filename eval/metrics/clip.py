"""CLIP score and CMMD: pictures as CLIP sees them, beside their prompt or beside other pictures.

CLIP score (Hessel et al. 2021): 100 times the cosine of a picture and its prompt, 0 where it is negative.
CMMD (Jayasumana et al. 2024): embeddings of the largest published CLIP at 336 pixels, compared by
`eval.metrics.distances.cmmd`. Both take the largest middle square, by Pillow's antialiased bicubic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.distances import cmmd
from eval.metrics.metric import Compute, Feature, Picture, PictureMetric, SetMetric, Tools

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # published
MAX_TOKENS = 77  # of CLIP's text encoder, begin and end included
CMMD_SIZE = 768


def open_score(tools: Tools) -> Compute:
    """The function that gives one score a picture."""
    import torch
    from transformers import CLIPModel, CLIPTokenizerFast

    from ldm.util import pick_device

    device = pick_device(tools.device)
    net = CLIPModel.from_pretrained(tools.weights, local_files_only=True).eval().to(device)
    tokenizer = CLIPTokenizerFast.from_pretrained(tools.weights, local_files_only=True)
    options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        pixels = _seen([one.image for one in pictures], net.config.vision_config.image_size).to(device)
        tokens = tokenizer([one.prompt for one in pictures], **options).to(device)
        found = net(**tokens, pixel_values=pixels)  # both embeddings of length 1
        cosines = (found.image_embeds * found.text_embeds).sum(dim=1)
        return 100 * cosines.clamp(min=0)[:, None].double().cpu().numpy()

    return compute


def open_embedding(tools: Tools) -> Compute:
    """The function that gives an embedding of length 1 a picture."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    from ldm.util import pick_device

    device = pick_device(tools.device)
    net = (
        CLIPVisionModelWithProjection.from_pretrained(tools.weights, local_files_only=True).eval().to(device)
    )

    @torch.inference_mode()
    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        pixels = _seen([one.image for one in pictures], net.config.image_size).to(device)
        embeddings = net(pixel_values=pixels).image_embeds  # [n 768]
        return torch.nn.functional.normalize(embeddings, dim=1).cpu().numpy()

    return compute


def cut_prompts(tools: Tools, prompts: Sequence[str]) -> str | None:
    """A warning that counts the prompts of which CLIP reads the beginning only."""
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(tools.weights, local_files_only=True)
    cut = sum(len(ids) > MAX_TOKENS for ids in tokenizer(list(prompts), verbose=False).input_ids)
    if not cut:
        return None
    return f"{cut:,} of {len(prompts):,} prompts are cut for the CLIP score: it reads {MAX_TOKENS} tokens"


def _seen(images: Sequence[np.ndarray], side: int) -> Tensor:
    from eval.metrics.networks import bicubic, middle_square, normalised, to_tensor

    return normalised(to_tensor(bicubic(one, side, middle_square(one)) for one in images), MEAN, STD)


CLIP_SCORE = PictureMetric(
    "CLIP score", "", "higher",
    Feature("clip_score", 1, open_score, ("prompt",), network="clip", notice=cut_prompts),
)  # fmt: skip
CMMD = SetMetric(
    "CMMD", "", "lower",
    Feature("cmmd", CMMD_SIZE, open_embedding, network="clip_large", dtype="<f4"),
    cmmd, "336 pixels, Pillow bicubic",
)  # fmt: skip
