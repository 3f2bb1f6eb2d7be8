"""Formats of files that do not load here: how to know them by their names, and what to take instead.

Each marker is a tensor name, or part of one, that its format always has and that no file of ours does. Names
of nested dictionaries are joined by dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CONTROL = "take a ControlNet file of your base model, such as control_v11p_sd15_canny.safetensors"
BASE = "take a file of Stable Diffusion 1.x or 2.x"
LORA_MARKER = re.compile(r"\.lora_(down|up|mid|A|B|linear_layer)\b|[._]lora\.(down|up)\.")
RETRAINED = "take a plain LoRA, or have the tool that made this one save the whole merged model"


@dataclass(frozen=True)
class ForeignFormat:
    """What such a file is, what to use instead, and the marker, searched in names one a line."""

    what: str
    instead: str
    marker: re.Pattern[str]


def foreign_format(names: Iterable[str]) -> ForeignFormat | None:
    """The format of a file with these tensor names that does not load here; None where no marker is known."""
    text = "\n".join(names)
    return next((one for one in FOREIGN if one.marker.search(text)), None)


def refuse_foreign(label: object, names: Iterable[str]) -> None:
    """Raise ValueError, one sentence, if the file called `label` with these names does not load here."""
    if other := foreign_format(names):
        raise ValueError(f"{label} is {other.what}; {other.instead}")


def is_lora(names: Iterable[str]) -> bool:
    """Whether these are names of low-rank differences, in the naming of any tool."""
    return any(LORA_MARKER.search(name) for name in names)


def _formats(*rows: tuple[str, str, str]) -> tuple[ForeignFormat, ...]:
    return tuple(ForeignFormat(what, instead, re.compile(marker, re.M)) for what, instead, marker in rows)


FOREIGN = _formats(
    (
        "a LoRA for a diffusion transformer (SD3, Flux or younger)",
        "take one for SD 1.x or 2.x",
        r"^(lora_unet_|lora_transformer_|transformer\.|diffusion_model\.)"
        r"(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks|blocks)\S*\.lora_",
    ),
    ("a Control-LoRA (low-rank difference of a control branch to its U-Net)", CONTROL, r"^lora_controlnet$"),
    ("a ControlNet-LLLite (small additions to the attention layers)", CONTROL, r"^lllite_"),
    (
        "a ControlNet-XS (a smaller branch that also listens to the U-Net)",
        CONTROL,
        r"(^|\.)(enc|dec)_zero_convs_(in|out)\.|^control_to_base_for_conv_in\.|\.base_to_ctrl\.",
    ),
    (
        "a ControlNet-Union (one branch for many controls, SDXL)",
        CONTROL,
        r"^(task_embedding$|control_add_embedding\.)",
    ),
    (
        "the difference of a control branch to the U-Net of SD 1.5, not the branch",
        "take the whole branch: the same name without diff_",
        r"^difference$",
    ),
    ("a style T2I-Adapter (picture features as words)", CONTROL, r"^style_embedding$"),
    (
        "a T2I-Adapter (features added to the U-Net)",
        CONTROL,
        r"^(adapter\.)?body\.\d+\.(block1|in_conv|resnets\.0\.block1)\.",
    ),
    ("an IP-Adapter (a picture as prompt)", CONTROL, r"^(ip_adapter|image_proj)\."),
    ("an AnimateDiff motion module, or a control for one", "it needs a video model", r"\.motion_modules\."),
    ("a Stable unCLIP checkpoint (a picture as prompt)", BASE, r"^noise_augmentor\."),
    ("a Stable Video Diffusion checkpoint", BASE, r"\.time_stack\."),
    (
        "an SDXL file (two text encoders, text of width 2048)",
        BASE,
        r"^conditioner\.embedders\.|(^|\.)label_emb\.0\.0\.weight$|^add_embedding\.",
    ),
    ("a Stable Cascade file", BASE, r"^clip_txt_mapper\.|\.channelwise\.0\.weight$"),
    (
        "a diffusion transformer (SD3, Flux or younger)",
        BASE,
        r"(^|\.)(joint_blocks|double_blocks|single_blocks|single_transformer_blocks|double_layers)\.\d"
        r"|^transformer_blocks\.0\.|^blocks\.0\.(attn|self_attn|cross_attn)\.",
    ),
    (
        "a textual-inversion embedding (new words for the text encoder)",
        "it is no model; prompts here use the words of the text encoder",
        r"^(emb_params$|string_to_(param|token)\b)|\A(clip_l\nclip_g|clip_g\nclip_l|<[^\n]*>|\*)\Z",
    ),
    (
        "a hypernetwork (small networks inside the attention layers)",
        "it is no model; take a LoRA in the same style",
        r"^layer_structure$",
    ),
    ("an upscaler (ESRGAN)", "it is no diffusion model", r"^model\.1\.sub\.0\.|^body\.0\.rdb1\."),
    # Relatives of the LoRA.
    ("a LoHa (products of low-rank matrices, LyCORIS)", RETRAINED, r"\.hada_[wt]\d"),
    ("a LoKr (Kronecker products, LyCORIS)", RETRAINED, r"\.lokr_[wt]\d"),
    ("a DoRA (direction and size apart)", RETRAINED, r"\.dora_scale$|\.lora_magnitude_vector"),
    ("an OFT (orthogonal rotations, LyCORIS)", RETRAINED, r"\.oft_(blocks|diag|r)\b|\.oft_R\."),
    ("an (IA)^3 (factors of activations, LyCORIS)", RETRAINED, r"\.on_input$"),
    ("a GLoRA (LyCORIS)", RETRAINED, r"\.b1\.weight$(?=[\s\S]*\.b2\.weight$)"),
    ("a full difference of weights (LyCORIS)", RETRAINED, r"\.diff(_b)?$|\.[wb]_norm$"),
    (
        "a LoRA for SDXL, which has a second text encoder",
        "take one for SD 1.x or 2.x",
        r"^lora_te2_|^text_encoder_2\.",
    ),
    ("a LoRA with embeddings of new words in it", "load the LoRA without them", r"^bundle_emb\."),
)  # fmt: skip
