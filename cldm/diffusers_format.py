"""Our names and settings in diffusers' form: U-Net, control branch and autoencoder.

Pure functions on state dicts and on yaml parameters, at any width and depth. Tensors are passed on, not
copied; only the autoencoder's 1x1 convolutions become matrices. diffusers is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
HINT_LAST = 14  # place of the hint block's last convolution; the places between hold its activations
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
VAE_SCALING = 0.18215  # SD's, where the yaml's first stage says nothing of it
HINT_CHANNELS = [16, 32, 96, 256]  # widths of the hint block, each once


def unet_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a UNetModel (without a prefix) under the names of diffusers' UNet2DConditionModel."""
    depth = _layers_per_block(state)
    last = max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    levels = (last + 1) // (depth + 1)
    return {_unet_name(name, depth, levels): tensor for name, tensor in state.items()}


def controlnet_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of a ControlNet (without a prefix) under the names of diffusers' ControlNetModel."""
    depth = _layers_per_block(state)
    return {_control_name(name, depth): tensor for name, tensor in state.items()}


def vae_to_diffusers(state: State) -> dict[str, Tensor]:
    """`state` of an AutoencoderKL (without a prefix) under the names of diffusers' class of that name.

    Attention weights [c, c, 1, 1] become [c, c].
    """
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up."))
    renamed = {}
    for name, tensor in state.items():
        new = _vae_name(name, levels)
        is_matrix = ".attentions." in new and tensor.ndim == 4
        renamed[new] = tensor[:, :, 0, 0] if is_matrix else tensor
    return renamed


def _layers_per_block(state: State) -> int:
    """Residual blocks on each level: what precedes the first downsampling, or all where there is none."""
    indices = {int(name.split(".")[1]) for name in state if name.startswith("input_blocks.")}
    matches = (re.match(r"input_blocks\.(\d+)\.0\.op\.weight$", name) for name in state)
    samplers = [int(found[1]) for found in matches if found]
    return min(samplers) - 1 if samplers else max(indices)


def _unet_name(name: str, depth: int, levels: int) -> str:
    if name.startswith("output_blocks."):
        _, number, place, rest = name.split(".", 3)
        level, layer = divmod(int(number), depth + 1)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
        return f"up_blocks.{level}." + _in_block(layer, place, rest)
    return _encoder_name(name, depth)


def _control_name(name: str, depth: int) -> str:
    if name.startswith("zero_convs."):
        _, number, _, rest = name.split(".", 3)
        return f"controlnet_down_blocks.{number}.{rest}"
    if name.startswith("middle_block_out."):
        return name.replace("middle_block_out.0", "controlnet_mid_block")
    if name.startswith("input_hint_block."):
        _, number, rest = name.split(".", 2)
        place = int(number)
        inner = {0: "conv_in", HINT_LAST: "conv_out"}.get(place, f"blocks.{place // 2 - 1}")
        return f"controlnet_cond_embedding.{inner}.{rest}"
    return _encoder_name(name, depth)


def _encoder_name(name: str, depth: int) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    group, number, rest = name.split(".", 2)
    if group == "middle_block":
        place = MIDDLE[number]
        return f"mid_block.{place}." + (_resnet(rest) if place.startswith("resnets") else rest)
    level, layer = divmod(int(number) - 1, depth + 1)
    place, rest = rest.split(".", 1)
    if rest.startswith("op."):
        return f"down_blocks.{level}.downsamplers.0.conv.{rest[len('op.') :]}"
    return f"down_blocks.{level}." + _in_block(layer, place, rest)


def _in_block(layer: int, place: str, rest: str) -> str:
    return f"resnets.{layer}.{_resnet(rest)}" if place == "0" else f"attentions.{layer}.{rest}"


def _resnet(rest: str) -> str:
    inner, _, kind = rest.rpartition(".")
    return f"{RESNET[inner]}.{kind}"


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    name = re.sub(r"mid\.block_([12])", lambda found: f"mid_block.resnets.{int(found[1]) - 1}", name)
    attention = "mid_block.attentions.0."
    name = re.sub(r"mid\.attn_1\.(\w+)", lambda found: attention + VAE_ATTENTION[found[1]], name)
    name = re.sub(r"down\.(\d+)\.block", r"down_blocks.\1.resnets", name)
    name = re.sub(r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0", name)
    # diffusers counts the decoder's levels in running order, the original from the largest picture.
    name = re.sub(r"up\.(\d+)\.", lambda found: f"up_blocks.{levels - 1 - int(found[1])}.", name)
    return name.replace(".block.", ".resnets.").replace(".upsample.", ".upsamplers.0.")


def unet_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of diffusers' UNet2DConditionModel for the yaml parameters of a UNetModel."""
    config = _encoder_config(params)
    config["up_block_types"] = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return config | {"out_channels": params.get("out_channels", 4)}


def controlnet_config(params: Mapping[str, Any], *, global_average_pooling: bool = False) -> dict[str, Any]:
    """Settings of diffusers' ControlNetModel for the yaml parameters of a ControlNet.

    global_average_pooling: the yaml's setting of that name, true for shuffle.
    """
    return _encoder_config(params) | {
        "conditioning_channels": params.get("hint_channels", 3),
        "conditioning_embedding_out_channels": list(HINT_CHANNELS),
        "global_pool_conditions": global_average_pooling,
    }


def vae_config(params: Mapping[str, Any], *, scale_factor: float = VAE_SCALING) -> dict[str, Any]:
    """Settings of diffusers' AutoencoderKL for the yaml parameters of ours."""
    inner = params["ddconfig"]
    widths = [inner["ch"] * mult for mult in inner["ch_mult"]]
    return {
        "in_channels": inner.get("in_channels", 3),
        "out_channels": inner.get("out_ch", 3),
        "latent_channels": params["embed_dim"],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": inner["num_res_blocks"],
        "norm_num_groups": inner.get("num_groups", 32),
        "scaling_factor": scale_factor,
    }


def _encoder_config(params: Mapping[str, Any]) -> dict[str, Any]:
    widths = [params["model_channels"] * mult for mult in params["channel_mult"]]
    with_attention = [2**level in params["attention_resolutions"] for level in range(len(widths))]
    head_width = params.get("num_head_channels", -1)
    # diffusers' attention_head_dim is really the number of heads: an old mistake that its files rely on.
    heads = params["num_heads"] if head_width == -1 else [width // head_width for width in widths]
    return {
        "in_channels": params["in_channels"],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in with_attention],
        "layers_per_block": params["num_res_blocks"],
        "attention_head_dim": heads,
        "cross_attention_dim": params["context_dim"],
        "transformer_layers_per_block": params.get("transformer_depth", 1),
        "use_linear_projection": params.get("use_linear_in_transformer", False),
        "upcast_attention": params.get("upcast_attention", False),
        "norm_num_groups": params.get("num_groups", 32),
    }
