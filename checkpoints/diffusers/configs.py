"""Our settings in diffusers' form: U-Net, control branch, autoencoder, text encoder and schedule.

Pure functions on yaml parameters, at any width and depth. diffusers is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm.modules.encoders.modules import OPEN_CLIP_SKIP, clip_settings
from ldm.modules.encoders.tokenizer import MAX_TOKENS, OPEN_CLIP, OPENAI, Dialect

VAE_SCALING = 0.18215  # SD's, where the yaml's first stage says nothing of it
HINT_CHANNELS = [16, 32, 96, 256]  # widths of the hint block, each once
TEXT_ENCODERS = {"FrozenCLIPEmbedder": False, "FrozenOpenCLIPEmbedder": True}  # class -> open_clip's?
CLIP_VERSION = "openai/clip-vit-large-patch14"  # of Stable Diffusion 1.x, where the yaml says nothing of it
VOCABULARY = 49_408  # CLIP's tokens, BOS and EOS the last two
OPEN_CLIP_ARCH = "ViT-H-14"  # of Stable Diffusion 2.x, where the yaml says nothing of it
MLP_RATIO = 4.0  # open_clip's, where its settings say nothing of it
PREDICTION = {"eps": "epsilon", "v": "v_prediction"}  # parameterization of the yaml -> diffusers' word for it
FIRST_BETA, LAST_BETA, TIMESTEPS = 0.00085, 0.012, 1000  # SD's, where the yaml says nothing of them


def part_config(part: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one part of a pipeline, named by its folder, for the yaml parameters of a whole model.

    Raises ValueError for what diffusers does not have.
    """
    return CONFIGS[part](params)


def is_open_clip(params: Mapping[str, Any]) -> bool:
    """Whether the text encoder of a whole model's yaml parameters is that of Stable Diffusion 2.x.

    Raises ValueError for one that is neither this nor that of 1.x.
    """
    name = params["cond_stage_config"]["target"].rpartition(".")[2]
    if name not in TEXT_ENCODERS:
        raise ValueError(f"the text encoder {name} has no form in diffusers: {', '.join(TEXT_ENCODERS)} have")
    return TEXT_ENCODERS[name]


def _unet_config(params: Mapping[str, Any]) -> dict[str, Any]:
    inner = params["unet_config"]["params"]  # as published yaml files nest them
    config = _encoder_config(inner)
    config["up_block_types"] = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return config | {"out_channels": inner.get("out_channels", 4)}


def _controlnet_config(params: Mapping[str, Any]) -> dict[str, Any]:
    inner = params["control_stage_config"]["params"]
    return _encoder_config(inner) | {
        "conditioning_channels": inner.get("hint_channels", 3),
        "conditioning_embedding_out_channels": list(HINT_CHANNELS),
        "global_pool_conditions": params.get("global_average_pooling", False),
    }


def _vae_config(params: Mapping[str, Any]) -> dict[str, Any]:
    stage = params["first_stage_config"]["params"]
    inner = stage["ddconfig"]
    if inner.get("num_groups") == 0:
        raise ValueError("num_groups=0: diffusers has no autoencoder without norms")
    widths = [inner["ch"] * mult for mult in inner["ch_mult"]]
    return {
        "in_channels": inner.get("in_channels", 3),
        "out_channels": inner.get("out_ch", 3),
        "latent_channels": stage["embed_dim"],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": inner["num_res_blocks"],
        "norm_num_groups": inner.get("num_groups", 32),
        "scaling_factor": params.get("scale_factor", VAE_SCALING),
    }


def _text_config(params: Mapping[str, Any]) -> dict[str, Any]:
    inner = params["cond_stage_config"].get("params") or {}
    if is_open_clip(params):
        return _open_clip_config(inner)
    settings = clip_settings(inner.get("version", CLIP_VERSION)) | dict(inner.get("config") or {})
    return _token_config(OPENAI) | {"hidden_act": "quick_gelu"} | settings


def _scheduler_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """Of diffusers' DDIMScheduler."""
    return {
        "beta_schedule": "scaled_linear",
        "beta_start": params.get("linear_start", FIRST_BETA),
        "beta_end": params.get("linear_end", LAST_BETA),
        "num_train_timesteps": params.get("timesteps", TIMESTEPS),
        "prediction_type": PREDICTION[params.get("parameterization", "eps")],
        "clip_sample": False,  # latents are no pixels: they leave [-1, 1]
        "set_alpha_to_one": False,
        "steps_offset": 1,  # timesteps 1, 51, ...: those of the published sampler
        "timestep_spacing": "leading",
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


def _open_clip_config(inner: Mapping[str, Any]) -> dict[str, Any]:
    layer = inner.get("layer", "penultimate")
    if OPEN_CLIP_SKIP.get(layer) != OPEN_CLIP_SKIP["penultimate"]:
        raise ValueError(
            f"layer={layer!r}: diffusers' form of open_clip's encoder ends at the penultimate one"
        )
    # open_clip's own settings, read without importing it, which costs seconds
    name, spec = inner.get("arch", OPEN_CLIP_ARCH), find_spec("open_clip")
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    path = Path(folder, "model_configs", f"{name}.json")
    if not path.is_file():
        raise ValueError(f"arch={name!r} is no model of the installed open_clip: SD 2.x has {OPEN_CLIP_ARCH}")
    arch = json.loads(path.read_text("utf-8"))
    text = arch["text_cfg"] | dict(inner.get("config") or {})
    return _token_config(OPEN_CLIP) | {
        "hidden_act": "quick_gelu" if arch.get("quick_gelu") else "gelu",
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", MLP_RATIO)),
        "num_hidden_layers": text["layers"] - 1,  # the last one is stored but never run
        "num_attention_heads": text["heads"],
        "projection_dim": text.get("embed_dim", arch["embed_dim"]),
    }


def _token_config(dialect: Dialect) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_TOKENS,
        "layer_norm_eps": 1e-5,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": dialect.pad_id,
    }


CONFIGS = {
    "unet": _unet_config,
    "controlnet": _controlnet_config,
    "vae": _vae_config,
    "text_encoder": _text_config,
    "scheduler": _scheduler_config,
}
