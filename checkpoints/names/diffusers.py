"""The names of diffusers' files and the original ones, each way from the same tables.

U-Net, control branch and autoencoder are renamed block by block; of the text encoders, open_clip's keeps
query, key and value in one matrix where diffusers has three. Functions on state dicts at any width and
depth; tensors are passed on, not copied, unless their shape changes. An unknown name stays as it is, for the
strict load to report. diffusers is not needed here, and torch only where values change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from checkpoints.names.diffusers_tables import (
    TABLES,
    control_pairs,
    count_blocks,
    open_clip_pairs,
    unet_pairs,
    vae_pairs,
)

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
Pairs = Mapping[str, str]
Renamed = dict[str, "Tensor"]

POSITIONS = "position_ids"  # 0, 1, 2, ...: older files store them, newer ones and diffusers do not
TEXT_LEVEL = "text_model."  # above CLIP's names in files from transformers before 5.6, absent in newer ones
IN_PROJ = "attn.in_proj_"  # open_clip's query, key and value in one
TEXT_MARKER = "embeddings.position_embedding.weight"
OPEN_CLIP_BLOCKS = r"transformer\.resblocks\.(\d+)\."
OPEN_CLIP_WIDTH = 1024  # of the text encoder of Stable Diffusion 2.x; that of 1.x has 768
HEADS = ("q_proj", "k_proj", "v_proj")  # in the order in which the fused matrix has them


@dataclass(frozen=True)
class ComponentNames:
    """One part of a model: the prefix of its original names, one of diffusers' names, and the ways over.

    The ways are functions of state dicts without the prefix.
    """

    prefix: str  # in a whole model, with its dot
    marker_key: str  # a name that no other part has
    to_diffusers: Callable[[State], Renamed]
    from_diffusers: Callable[[State], Renamed]


def detect_component(names: Iterable[str]) -> str | None:
    """The entry of COMPONENTS that a file with these diffusers names holds; None for any other file."""
    bare = {name.removeprefix(TEXT_LEVEL) for name in names}
    return next((name for name, part in COMPONENTS.items() if part.marker_key in bare), None)


def to_original(state: State, name: str, *, open_clip: bool | None = None) -> Renamed:
    """`state` of the entry `name` of COMPONENTS under the original names, prefix and all.

    open_clip: whether a text encoder is that of Stable Diffusion 2.x; None tells it by its width.
    """
    part = COMPONENTS[name]
    if name == "text_encoder":
        if open_clip is None:
            positions = next(tensor for one, tensor in state.items() if one.endswith(TEXT_MARKER))
            open_clip = tuple(positions.shape[1:]) == (OPEN_CLIP_WIDTH,)
        part = OPEN_CLIP if open_clip else part
    return {part.prefix + one: tensor for one, tensor in part.from_diffusers(state).items()}


def _blocks_renamed(prefix: str, marker_key: str, pairs_of: Callable[[State], Pairs]) -> ComponentNames:
    return ComponentNames(
        prefix,
        marker_key,
        lambda state: _renamed(state, pairs_of(state)),
        lambda state: _renamed(state, pairs_of(state), back=True),
    )


def _vae_to_diffusers(state: State) -> Renamed:
    """Attention weights [c, c, 1, 1] become [c, c]."""
    renamed = _renamed(state, vae_pairs(state))
    return {
        name: tensor[:, :, 0, 0] if ".attentions." in name and len(tensor.shape) == 4 else tensor
        for name, tensor in renamed.items()
    }


def _vae_from_diffusers(state: State) -> Renamed:
    today = {_todays_name(name): tensor for name, tensor in state.items()}
    renamed = _renamed(today, vae_pairs(today), back=True)
    return {
        name: tensor[:, :, None, None] if ".mid.attn_1." in name and len(tensor.shape) == 2 else tensor
        for name, tensor in renamed.items()
    }


def _clip_to_diffusers(state: State) -> Renamed:
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(POSITIONS)}
    return {name.removeprefix("transformer."): tensor for name, tensor in kept.items()}


def _open_clip_to_diffusers(state: State) -> Renamed:
    """Less what never runs, and what diffusers lacks: the last block, the projection, the temperature."""
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    last = f"transformer.resblocks.{count_blocks(bare, OPEN_CLIP_BLOCKS) - 1}."
    split: Renamed = {}
    for name, tensor in bare.items():
        start, found, kind = name.partition(IN_PROJ)
        if name.startswith((last, "text_projection", "logit_scale")):
            continue
        if not found:
            split[name] = tensor
            continue
        width = tensor.shape[0] // len(HEADS)  # [3 d, ...] -> three of [d, ...]
        for place, head in enumerate(HEADS):
            split[f"{start}attn.{head}.{kind}"] = tensor[place * width : (place + 1) * width]
    return _renamed(split, open_clip_pairs(bare))


def _open_clip_from_diffusers(state: State) -> Renamed:
    """With or without the level `text_model.`.

    What never runs is filled with zeros: a block of zeros passes on what it gets, so that even a model that
    is told to run its last block gives the same.
    """
    import torch

    full = {TEXT_LEVEL + name.removeprefix(TEXT_LEVEL): tensor for name, tensor in state.items()}
    bare = _renamed(full, open_clip_pairs(full), back=True)
    fused: Renamed = {}
    for name, tensor in bare.items():
        start, found, rest = name.partition("attn.q_proj.")
        if found:
            parts = [bare.get(f"{start}attn.{head}.{rest}", tensor) for head in HEADS]
            fused[f"{start}{IN_PROJ}{rest}"] = torch.cat(parts)
        elif not any(f"attn.{head}." in name for head in HEADS):
            fused[name] = tensor
    count = count_blocks(fused, OPEN_CLIP_BLOCKS)
    for name, tensor in list(fused.items()):
        if name.startswith(f"transformer.resblocks.{count - 1}."):
            fused[name.replace(f".{count - 1}.", f".{count}.", 1)] = torch.zeros_like(tensor)
            if name.endswith("attn.out_proj.weight"):
                fused["text_projection"] = torch.zeros_like(tensor)
    return {f"model.{name}": tensor for name, tensor in fused.items()}


def _renamed(state: State, pairs: Pairs, *, back: bool = False) -> Renamed:
    """`state` with the longest beginning of each name that `pairs` knows replaced; back: theirs by ours."""
    table = {theirs: ours for ours, theirs in pairs.items()} if back else pairs
    return {_rename(name, table): tensor for name, tensor in state.items()}


def _rename(name: str, table: Pairs) -> str:
    end = len(name)
    while end > 0:
        if (found := table.get(name[:end])) is not None:
            return found + name[end:]
        end = name.rfind(".", 0, end)  # the longest beginning first
    return name


def _todays_name(name: str) -> str:
    for old, new in TABLES["old_vae_attention"].items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


# By the folder that a diffusers pipeline keeps it in. CLIP's names need no table: whatever the level, they
# are brought to the published ones with those of every other file.
COMPONENTS = {
    "unet": _blocks_renamed("model.diffusion_model.", "up_blocks.0.resnets.0.norm1.weight", unet_pairs),
    "vae": ComponentNames(
        "first_stage_model.",
        "decoder.up_blocks.0.resnets.0.norm1.weight",
        _vae_to_diffusers,
        _vae_from_diffusers,
    ),
    "text_encoder": ComponentNames("cond_stage_model.", TEXT_MARKER, _clip_to_diffusers, dict),
    "controlnet": _blocks_renamed("control_model.", "controlnet_mid_block.weight", control_pairs),
}
OPEN_CLIP = ComponentNames(
    "cond_stage_model.", TEXT_MARKER, _open_clip_to_diffusers, _open_clip_from_diffusers
)
