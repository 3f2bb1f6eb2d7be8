"""The names that text encoder files use, turned into those of Stable Diffusion: pure functions dict -> dict.

transformers and open_clip have renamed and dropped keys over the years. `strict=False` would skip a whole
encoder in silence, so each known naming is listed here; all else stays, for the strict load to report.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

CLIP_TEXT = ("embeddings", "encoder", "final_layer_norm")
CLIP_UNUSED = ("vision_model", "visual_projection", "text_projection", "logit_scale")  # of a whole CLIP
OPEN_CLIP_UNUSED = ("visual", "attn_mask")
LOGIT_SCALE = math.log(1 / 0.07)  # where CLIP's temperature starts; conditioning never reads it


def published_clip_keys(state: Mapping[str, Tensor], prefix: str = "") -> State:
    """`state` with CLIP's text encoder below `prefix` named `transformer.text_model.*`; nothing else changes.

    Known: published Stable Diffusion files; transformers >= 5.6 (no `text_model.`); text encoder files of
    diffusers and whole CLIP files (no `transformer.`), whose projections and image half are left out.
    `position_ids` are rebuilt: newer files lack them, merged ones hold floats that may round to wrong places.
    """
    adapted = {}
    for key, value in state.items():
        stem = key[len(prefix) :].removeprefix("transformer.").removeprefix("text_model.")
        part = stem.split(".")[0]
        if not key.startswith(prefix):
            adapted[key] = value
        elif part in CLIP_TEXT:
            adapted[f"{prefix}transformer.text_model.{stem}"] = value
        elif part not in CLIP_UNUSED:
            adapted[key] = value
    embeddings = f"{prefix}transformer.text_model.embeddings"
    if (table := adapted.get(f"{embeddings}.position_embedding.weight")) is not None:
        count = table.shape[:1].numel()  # that of a number is for the strict load to report
        adapted[f"{embeddings}.position_ids"] = torch.arange(count, device="cpu")[None]  # [1, n]
    return adapted


def published_open_clip_keys(state: Mapping[str, Tensor], prefix: str = "") -> State:
    """`state` with open_clip's text half below `prefix` named `model.*`; keys elsewhere stay as they are.

    Known: published Stable Diffusion 2.x files; open_clip's own (no `model.`), less their image half.
    A missing `logit_scale`, which conditioning never reads, gets its published start value.
    """
    adapted = {}
    for key, value in state.items():
        stem = key[len(prefix) :].removeprefix("model.")
        if not key.startswith(prefix):
            adapted[key] = value
        elif stem.split(".")[0] not in OPEN_CLIP_UNUSED:
            adapted[f"{prefix}model.{stem}"] = value
    if f"{prefix}model.positional_embedding" in adapted:
        adapted.setdefault(f"{prefix}model.logit_scale", torch.tensor(LOGIT_SCALE, device="cpu"))
    return adapted
