"""The names inside published checkpoints, brought to the names of our models.

Files differ in what they carry beside the weights, in the prefix of a part stored alone, in the naming (the
text encoder's has changed over the years, diffusers has its own), and in whether moving averages (EMA) come
along. What is left out goes by name, with a reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from checkpoints.names.diffusers import COMPONENTS, detect_component, to_original
from checkpoints.names.recognize import is_lora, refuse_foreign

if TYPE_CHECKING:
    from torch import Tensor

# Prefixes of a whole model's parts, and what messages call them.
PART_LABELS = {
    "model.diffusion_model.": "U-Net",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.": "text encoder",
    "control_model.": "control branch",
}
# A part stored alone, without its prefix, is known by one of its names.
BARE_PARTS = {
    "input_hint_block.0.weight": "control_model.",
    "output_blocks.0.0.in_layers.0.weight": "model.diffusion_model.",
    "post_quant_conv.weight": "first_stage_model.",
}
TEXT_PREFIX = "cond_stage_model."  # of both families
OPEN_CLIP_MARKER = ".resblocks."  # only open_clip calls its layers so
EMA_PREFIX = "model_ema."
EMA_OWNER = "model."  # moving averages exist for everything under it: the U-Net
DROPPED = {
    re.compile(r"^model_ema\."): "moving averages beside the weights (use_ema=True takes them)",
    re.compile(r"\.position_ids$"): "positions 0, 1, 2, ..., which the model counts itself",
    re.compile(r"^first_stage_model\.loss\."): "loss of the autoencoder's own training",
}
UNUSED_TEXT = "halves of CLIP that a text encoder never runs"

CONTEXT_MARKER = "attn2.to_k.weight"  # [c, d]: it reads the text, so its width d tells the family
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the refiner of SDXL", 2048: "SDXL"}

Shapes = Mapping[str, tuple[int, ...]]  # name -> shape


def normalize_names(
    tensors: dict[str, Tensor], *, use_ema: bool = False
) -> tuple[dict[str, Tensor], Counter[str], int]:
    """`tensors` of any naming under those of a whole model, reasons for what was left out, how many averages.

    use_ema: moving averages take the place of the weights they belong to. Raises ValueError for a file of a
    foreign format, such as a LoRA.
    """
    refuse_foreign("it", tensors)
    if is_lora(tensors):
        raise ValueError(
            "it is a LoRA, which changes a model and is none: give the model here, this by --lora"
        )
    if component := detect_component(tensors):
        tensors = to_original(tensors, component)
    averages = ema_names(tensors) if use_ema else {}  # by the file's names, before any is completed
    averaged = {averages[name]: tensor for name, tensor in tensors.items() if name in averages}
    prefix = missing_prefix(tensors)
    kept: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    for name, tensor in tensors.items():
        full = name if name.startswith(EMA_PREFIX) else prefix + name
        reason = next((why for pattern, why in DROPPED.items() if pattern.search(full)), None)
        if reason is None:
            kept[full] = tensor
        elif name not in averages:
            dropped[reason] += 1
    return _adapt_text(kept, dropped) | averaged, dropped, len(averaged)


def ema_names(names: Iterable[str]) -> dict[str, str]:
    """Names of the moving averages of `names`, each with the name it stands for.

    Every dot behind the prefix is gone, so that the way back needs the names of the weights. Raises
    ValueError where two of them would share an average.
    """
    table: dict[str, str] = {}
    for name in (name for name in names if name.startswith(EMA_OWNER)):
        average = EMA_PREFIX + name.removeprefix(EMA_OWNER).replace(".", "")
        if average in table:
            raise ValueError(f"{table[average]} and {name} would share the moving average {average}")
        table[average] = name
    return table


def part_of(name: str) -> str:
    """What messages call the part of the model that holds `name`."""
    return next((part for prefix, part in PART_LABELS.items() if name.startswith(prefix)), "schedule")


def context_width(shapes: Shapes) -> int | None:
    """Width of the text that a model of these shapes reads, in either naming; None where it reads none."""
    return next(
        (shape[-1] for name, shape in shapes.items() if shape and name.endswith(CONTEXT_MARKER)), None
    )


def family(width: int) -> str:
    """Whose text is `width` wide, for a message."""
    return f"text of width {width}" + (f" ({FAMILIES[width]})" if width in FAMILIES else "")


def missing_prefix(names: Iterable[str]) -> str:
    """What the names of a part stored alone lack in front; "" where they lack nothing or are not known."""
    names = set(names)
    if any(name.startswith(tuple(PART_LABELS)) for name in names):
        return ""
    if component := detect_component(names):
        return COMPONENTS[component].prefix
    return next((prefix for key, prefix in BARE_PARTS.items() if key in names), "")


def _adapt_text(kept: dict[str, Tensor], dropped: Counter[str]) -> dict[str, Tensor]:
    """`kept` with today's names for the text encoder; what the adapter leaves out is added to `dropped`."""
    # Imported here, for torch comes with it: what a file is can be said from names alone, without torch.
    from ldm.modules.encoders.published_keys import published_clip_keys, published_open_clip_keys

    text = {name: tensor for name, tensor in kept.items() if name.startswith(TEXT_PREFIX)}
    open_clip = any(OPEN_CLIP_MARKER in name for name in text)
    adapted = (published_open_clip_keys if open_clip else published_clip_keys)(kept, TEXT_PREFIX)
    survivors = {id(tensor) for tensor in adapted.values()}
    if unused := sum(id(tensor) not in survivors for tensor in text.values()):
        dropped[UNUSED_TEXT] += unused
    return adapted
