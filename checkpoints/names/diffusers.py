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
    OLD_VAE_ATTENTION,
    Layout,
    control_pairs,
    open_clip_pairs,
    unet_pairs,
    vae_pairs,
)

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
Pairs = Mapping[str, str]

POSITIONS = "position_ids"  # 0, 1, 2, ...: older files store them, newer ones and diffusers do not
TEXT_LEVEL = "text_model."  # above CLIP's names in files from transformers before 5.6, absent in newer ones
IN_PROJ = "attn.in_proj_"  # open_clip's query, key and value in one
TEXT_MARKER = "embeddings.position_embedding.weight"
OPEN_CLIP_WIDTH = 1024  # of the text encoder of Stable Diffusion 2.x; that of 1.x has 768
HEADS = ("q_proj", "k_proj", "v_proj")


def unet_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a UNetModel (without a prefix) under the names of diffusers' UNet2DConditionModel."""
    return _renamed(state, unet_pairs(Layout.of_original(state)))


def unet_from_diffusers(state: State) -> dict[str, Tensor]:
    """The way back from `unet_to_diffusers`."""
    return _renamed(state, _turned(unet_pairs(Layout.of_diffusers(state))))


def controlnet_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a ControlNet (without a prefix) under the names of diffusers' ControlNetModel."""
    return _renamed(state, control_pairs(Layout.of_original(state)))


def controlnet_from_diffusers(state: State) -> dict[str, Tensor]:
    """The way back from `controlnet_to_diffusers`."""
    return _renamed(state, _turned(control_pairs(Layout.of_diffusers(state))))


def vae_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of an AutoencoderKL (without a prefix) under the names of diffusers' class of that name.

    Attention weights [c, c, 1, 1] become [c, c].
    """
    renamed = _renamed(state, vae_pairs(state))
    return {
        name: tensor[:, :, 0, 0] if ".attentions." in name and len(tensor.shape) == 4 else tensor
        for name, tensor in renamed.items()
    }


def vae_from_diffusers(state: State) -> dict[str, Tensor]:
    """The way back from `vae_to_diffusers`; the attention's names from before diffusers 0.17 do as well."""
    today = {_today(name): tensor for name, tensor in state.items()}
    renamed = _renamed(today, _turned(vae_pairs(today)))
    return {
        name: tensor[:, :, None, None] if ".mid.attn_1." in name and len(tensor.shape) == 2 else tensor
        for name, tensor in renamed.items()
    }


def clip_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a FrozenCLIPEmbedder under the names of published CLIPTextModel files."""
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(POSITIONS)}
    return {name.removeprefix("transformer."): tensor for name, tensor in kept.items()}


def open_clip_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a FrozenOpenCLIPEmbedder under the names of CLIPTextModel, less what never runs.

    That is the last block, the text projection and the temperature: diffusers' Stable Diffusion 2.x has none.
    """
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    last = f"transformer.resblocks.{_blocks(bare, 'transformer.resblocks.') - 1}."
    unused = (last, "text_projection", "logit_scale")
    split: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        if name.startswith(unused):
            continue
        start, found, kind = name.partition(IN_PROJ)
        if not found:
            split[name] = tensor
            continue
        width = tensor.shape[0] // len(HEADS)
        for place, head in enumerate(HEADS):
            split[f"{start}attn.{head}.{kind}"] = tensor[place * width : (place + 1) * width]
    return _renamed(split, open_clip_pairs(bare))


def open_clip_from_diffusers(state: State) -> dict[str, Tensor]:
    """The way back from `open_clip_to_diffusers`, with or without the level `text_model.`.

    What never runs is filled with zeros: a block of zeros passes on what it gets, so that even a model that
    is told to run its last block gives the same.
    """
    import torch

    full = {TEXT_LEVEL + name.removeprefix(TEXT_LEVEL): tensor for name, tensor in state.items()}
    bare = _renamed(full, _turned(open_clip_pairs(full)))
    fused: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        start, found, rest = name.partition("attn.q_proj.")
        if found:
            parts = [bare.get(f"{start}attn.{head}.{rest}", tensor) for head in HEADS]
            fused[f"{start}{IN_PROJ}{rest}"] = torch.cat(parts)
        elif not any(f"attn.{head}." in name for head in HEADS):
            fused[name] = tensor
    stem, count = "transformer.resblocks.", _blocks(fused, "transformer.resblocks.")
    for name, tensor in list(fused.items()):
        if name.startswith(f"{stem}{count - 1}."):
            fused[name.replace(f".{count - 1}.", f".{count}.", 1)] = torch.zeros_like(tensor)
            if name.endswith("attn.out_proj.weight"):
                fused["text_projection"] = torch.zeros_like(tensor)
    return {f"model.{name}": tensor for name, tensor in fused.items()}


@dataclass(frozen=True)
class ComponentNames:
    """One part of a model: the prefix of its original names, one of diffusers' names, and the ways over."""

    prefix: str
    marker_key: str
    to_diffusers: Callable[[State], dict[str, Tensor]]
    from_diffusers: Callable[[State], dict[str, Tensor]]


# By the folder that a diffusers pipeline keeps it in. CLIP's names need no table: whatever the level, they
# are brought to the published ones with those of every other file.
COMPONENTS = {
    "unet": ComponentNames(
        "model.diffusion_model.", "up_blocks.0.resnets.0.norm1.weight", unet_to_diffusers, unet_from_diffusers
    ),
    "vae": ComponentNames(
        "first_stage_model.",
        "decoder.up_blocks.0.resnets.0.norm1.weight",
        vae_to_diffusers,
        vae_from_diffusers,
    ),
    "text_encoder": ComponentNames("cond_stage_model.", TEXT_MARKER, clip_to_diffusers, dict),
    "controlnet": ComponentNames(
        "control_model.", "controlnet_mid_block.weight", controlnet_to_diffusers, controlnet_from_diffusers
    ),
}
OPEN_CLIP = ComponentNames("cond_stage_model.", TEXT_MARKER, open_clip_to_diffusers, open_clip_from_diffusers)


def detect_component(names: Iterable[str]) -> str | None:
    """The entry of COMPONENTS that a file with these diffusers names holds; None for any other file."""
    bare = {name.removeprefix(TEXT_LEVEL) for name in names}
    return next((name for name, part in COMPONENTS.items() if part.marker_key in bare), None)


def to_original(state: State, name: str, *, open_clip: bool | None = None) -> dict[str, Tensor]:
    """`state` of the entry `name` of COMPONENTS under the original names, prefix and all.

    open_clip: whether a text encoder is that of Stable Diffusion 2.x; None tells it by its width.
    """
    if open_clip is None and name == "text_encoder":
        full = {TEXT_LEVEL + one.removeprefix(TEXT_LEVEL): tensor for one, tensor in state.items()}
        open_clip = full[TEXT_LEVEL + TEXT_MARKER].shape[1] == OPEN_CLIP_WIDTH
    part = OPEN_CLIP if open_clip and name == "text_encoder" else COMPONENTS[name]
    return {part.prefix + one: tensor for one, tensor in part.from_diffusers(state).items()}


def _renamed(state: State, pairs: Pairs) -> dict[str, Tensor]:
    return {_rename(name, pairs): tensor for name, tensor in state.items()}


def _rename(name: str, pairs: Pairs) -> str:
    """`name` with its longest beginning that `pairs` knows replaced."""
    end = len(name)
    while end > 0:
        if (found := pairs.get(name[:end])) is not None:
            return found + name[end:]
        end = name.rfind(".", 0, end)
    return name


def _turned(pairs: Pairs) -> dict[str, str]:
    return {theirs: ours for ours, theirs in pairs.items()}


def _today(name: str) -> str:
    for old, new in OLD_VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _blocks(names: Iterable[str], stem: str) -> int:
    numbers = [int(name[len(stem) :].split(".")[0]) for name in names if name.startswith(stem)]
    return 1 + max(numbers, default=-1)
