"""Which block of ours is which of diffusers': the tables behind `checkpoints.names.diffusers`.

Each maps the beginning of an original name to that of diffusers', one to one, so that it serves both ways. It
is made for the depth and levels that names in either naming show.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import yaml

Names = Collection[str]  # of tensors, in either naming

TABLES = yaml.safe_load(Path(__file__).with_name("diffusers.yaml").read_text("utf-8"))
HINT_BLOCKS = 6  # between the hint block's first and last convolution, an activation after each


def unet_pairs(names: Names) -> dict[str, str]:
    """The whole U-Net: encoder, then decoder."""
    depth, attention = _layout(names)
    pairs = _encoder_pairs(depth, attention) | TABLES["unet"]
    for level, attends in enumerate(reversed(attention)):
        for layer in range(depth + 1):
            block = f"output_blocks.{level * (depth + 1) + layer}"
            pairs |= _below(f"{block}.0", f"up_blocks.{level}.resnets.{layer}", "resnet")
            pairs[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        # the last block of a level brings the next one's size, behind its attention if it has any
        pairs[f"{block}.{1 + attends}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return pairs


def control_pairs(names: Names) -> dict[str, str]:
    """A control branch: encoder, zero convolutions and hint block."""
    depth, attention = _layout(names)
    pairs = _encoder_pairs(depth, attention) | TABLES["control"]
    for number in range(len(attention) * (depth + 1)):
        pairs[f"zero_convs.{number}.0"] = f"controlnet_down_blocks.{number}"
    for number in range(HINT_BLOCKS):
        pairs[f"input_hint_block.{2 * (number + 1)}"] = f"controlnet_cond_embedding.blocks.{number}"
    return pairs


def vae_pairs(names: Names) -> dict[str, str]:
    """An autoencoder."""
    levels = count_blocks(names, r"decoder\.up(?:_blocks)?\.(\d+)\.")
    blocks = count_blocks(names, r"decoder\.up.*\.(?:block|resnets)\.(\d+)\.")
    pairs = dict(TABLES["vae"])
    for half in ("encoder", "decoder"):
        pairs |= _below(f"{half}.mid", f"{half}.mid_block", "vae_middle")
    for level in range(levels):
        down = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        # diffusers counts the decoder's levels in running order, the original from the largest picture
        up = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for block in range(blocks):
            for ours, theirs in (down, up):
                pairs[f"{ours}.block.{block}"] = f"{theirs}.resnets.{block}"
                pairs[f"{ours}.block.{block}.nin_shortcut"] = f"{theirs}.resnets.{block}.conv_shortcut"
        pairs[f"{down[0]}.downsample"] = f"{down[1]}.downsamplers.0"
        pairs[f"{up[0]}.upsample"] = f"{up[1]}.upsamplers.0"
    return pairs


def open_clip_pairs(names: Names) -> dict[str, str]:
    """open_clip's text half, query, key and value already apart."""
    pairs = dict(TABLES["open_clip"])
    for block in range(
        count_blocks(names, r"(?:transformer\.resblocks|text_model\.encoder\.layers)\.(\d+)\.")
    ):
        ours, theirs = f"transformer.resblocks.{block}", f"text_model.encoder.layers.{block}"
        pairs |= _below(ours, theirs, "open_clip_block")
    return pairs


def count_blocks(names: Names, pattern: str) -> int:
    """One more than the largest number that `pattern` finds at the beginning of `names`."""
    return 1 + max(_numbers(names, pattern), default=-1)


def _layout(names: Names) -> tuple[int, list[bool]]:
    """Of a U-Net: residual blocks on each level, and for each level whether it has attention."""
    if levels := count_blocks(names, r"down_blocks\.(\d+)\."):
        depth = count_blocks(names, r"down_blocks\.\d+\.resnets\.(\d+)\.")
        attending = _numbers(names, r"down_blocks\.(\d+)\.attentions\.")
    else:
        blocks = max(1, count_blocks(names, r"input_blocks\.(\d+)\."))
        # what precedes the first downsampling is a level
        depth = min(_numbers(names, r"input_blocks\.(\d+)\.0\.op\."), default=blocks) - 1
        attending = {(n - 1) // (depth + 1) for n in _numbers(names, r"input_blocks\.(\d+)\.1\.")}
        levels = blocks // (depth + 1)
    return depth, [level in attending for level in range(levels)]


def _encoder_pairs(depth: int, attention: list[bool]) -> dict[str, str]:
    pairs = dict(TABLES["encoder"])
    for level in range(len(attention)):
        first = 1 + level * (depth + 1)  # block 0 is the first convolution
        for layer in range(depth):
            block = f"input_blocks.{first + layer}"
            pairs |= _below(f"{block}.0", f"down_blocks.{level}.resnets.{layer}", "resnet")
            pairs[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        pairs[f"input_blocks.{first + depth}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    pairs |= _below("middle_block.0", "mid_block.resnets.0", "resnet")
    pairs["middle_block.1"] = "mid_block.attentions.0"
    return pairs | _below("middle_block.2", "mid_block.resnets.1", "resnet")


def _below(ours: str, theirs: str, table: str) -> dict[str, str]:
    return {f"{ours}.{inner}": f"{theirs}.{other}" for inner, other in TABLES[table].items()}


def _numbers(names: Names, pattern: str) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(pattern, name))}
