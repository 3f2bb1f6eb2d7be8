"""Which block of ours is which of diffusers': the tables behind `checkpoints.names.diffusers`.

Each table maps the beginning of an original name to that of diffusers', one to one, so that it serves both
ways. It is made for the depth and levels that a state dict shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENCODER_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
}
UNET_ENDS = {"out.0": "conv_norm_out", "out.2": "conv_out"}
CONTROL_ENDS = {
    "middle_block_out.0": "controlnet_mid_block",
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    "input_hint_block.14": "controlnet_cond_embedding.conv_out",
}
HINT_BLOCKS = 6  # between the hint block's first and last convolution, an activation after each
VAE_ENDS = {"encoder.norm_out": "encoder.conv_norm_out", "decoder.norm_out": "decoder.conv_norm_out"}
VAE_MIDDLE = {"block_1": "resnets.0", "block_2": "resnets.1"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# As diffusers called them before 0.17; such files are still in circulation.
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OPEN_CLIP_ENDS = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class Layout:
    """Of a U-Net: residual blocks on each level, and for each level whether it has attention."""

    depth: int
    attention: tuple[bool, ...]

    @classmethod
    def of_original(cls, names: Iterable[str]) -> Layout:
        """As the original names show it; what precedes the first downsampling is a level."""
        names = [name for name in names if name.startswith("input_blocks.")]
        last = max(_numbers(names, r"input_blocks\.(\d+)\."), default=0)
        depth = min(_numbers(names, r"input_blocks\.(\d+)\.0\.op\."), default=last + 1) - 1
        attending = {(n - 1) // (depth + 1) for n in _numbers(names, r"input_blocks\.(\d+)\.1\.")}
        return cls(depth, tuple(level in attending for level in range((last + 1) // (depth + 1))))

    @classmethod
    def of_diffusers(cls, names: Iterable[str]) -> Layout:
        """As diffusers' names show it."""
        names = [name for name in names if name.startswith("down_blocks.")]
        depth = 1 + max(_numbers(names, r"down_blocks\.\d+\.resnets\.(\d+)\."), default=-1)
        levels = 1 + max(_numbers(names, r"down_blocks\.(\d+)\."), default=-1)
        attending = _numbers(names, r"down_blocks\.(\d+)\.attentions\.")
        return cls(depth, tuple(level in attending for level in range(levels)))


def unet_pairs(layout: Layout) -> dict[str, str]:
    """The whole U-Net: encoder, then decoder."""
    pairs = _encoder_pairs(layout) | UNET_ENDS
    for level, attends in enumerate(reversed(layout.attention)):
        for layer in range(layout.depth + 1):
            block = f"output_blocks.{level * (layout.depth + 1) + layer}"
            pairs |= _resnet(f"{block}.0", f"up_blocks.{level}.resnets.{layer}")
            pairs[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        # the last block of a level brings the next one's size, behind its attention if it has any
        pairs[f"{block}.{1 + attends}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return pairs


def control_pairs(layout: Layout) -> dict[str, str]:
    """A control branch: encoder, zero convolutions and hint block."""
    pairs = _encoder_pairs(layout) | CONTROL_ENDS
    for number in range(len(layout.attention) * (layout.depth + 1)):
        pairs[f"zero_convs.{number}.0"] = f"controlnet_down_blocks.{number}"
    for number in range(HINT_BLOCKS):
        pairs[f"input_hint_block.{2 * (number + 1)}"] = f"controlnet_cond_embedding.blocks.{number}"
    return pairs


def vae_pairs(names: Iterable[str]) -> dict[str, str]:
    """An autoencoder of as many levels and blocks as `names`, in either naming, show."""
    names = list(names)
    levels = 1 + max(_numbers(names, r"decoder\.up(?:_blocks)?\.(\d+)\."), default=-1)
    blocks = 1 + max(_numbers(names, r"decoder\.up.*\.(?:block|resnets)\.(\d+)\."), default=-1)
    pairs = dict(VAE_ENDS)
    for half in ("encoder", "decoder"):
        middle = f"{half}.mid_block"
        pairs |= {f"{half}.mid.{ours}": f"{middle}.{theirs}" for ours, theirs in VAE_MIDDLE.items()}
        for ours, theirs in VAE_ATTENTION.items():
            pairs[f"{half}.mid.attn_1.{ours}"] = f"{middle}.attentions.0.{theirs}"
    for level in range(levels):
        down = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        # diffusers counts the decoder's levels in running order, the original from the largest picture
        up = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for block in range(blocks):
            for ours, theirs in (down, up):
                inner = f"{ours}.block.{block}", f"{theirs}.resnets.{block}"
                pairs[inner[0]] = inner[1]
                pairs[f"{inner[0]}.nin_shortcut"] = f"{inner[1]}.conv_shortcut"
        pairs[f"{down[0]}.downsample"] = f"{down[1]}.downsamplers.0"
        pairs[f"{up[0]}.upsample"] = f"{up[1]}.upsamplers.0"
    return pairs


def open_clip_pairs(names: Iterable[str]) -> dict[str, str]:
    """open_clip's text half, query, key and value already apart; `names` in either naming."""
    stems = r"(?:transformer\.resblocks|text_model\.encoder\.layers)"
    blocks = 1 + max(_numbers(names, stems + r"\.(\d+)\."), default=-1)
    pairs = dict(OPEN_CLIP_ENDS)
    for block in range(blocks):
        for ours, theirs in OPEN_CLIP_BLOCK.items():
            start = f"transformer.resblocks.{block}.{ours}"
            pairs[start] = f"text_model.encoder.layers.{block}.{theirs}"
    return pairs


def _encoder_pairs(layout: Layout) -> dict[str, str]:
    pairs = dict(ENCODER_ENDS)
    for level in range(len(layout.attention)):
        first = 1 + level * (layout.depth + 1)
        for layer in range(layout.depth):
            block = f"input_blocks.{first + layer}"
            pairs |= _resnet(f"{block}.0", f"down_blocks.{level}.resnets.{layer}")
            pairs[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        pairs[f"input_blocks.{first + layout.depth}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    pairs |= _resnet("middle_block.0", "mid_block.resnets.0")
    pairs["middle_block.1"] = "mid_block.attentions.0"
    return pairs | _resnet("middle_block.2", "mid_block.resnets.1")


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{inner}": f"{theirs}.{other}" for inner, other in RESNET.items()}


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    found = (re.match(pattern, name) for name in names)
    return {int(match[1]) for match in found if match}
