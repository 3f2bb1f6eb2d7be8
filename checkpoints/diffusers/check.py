"""Whether a folder in diffusers' form says the same of itself as a model's yaml.

Names and shapes of tensors are checked by every load. What they cannot show is compared here: the number of
attention heads, what the network predicts, the schedule, the scale of the latents. A wrong one of these gives
noise instead of a picture, and no error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint
from checkpoints.diffusers.configs import part_config

# What no picture of ours depends on: precision, sampling at run time, tokens, the pooling of one control.
IGNORED = {
    "upcast_attention", "clip_sample", "set_alpha_to_one", "steps_offset", "timestep_spacing", "vocab_size",
    "projection_dim", "bos_token_id", "eos_token_id", "pad_token_id", "layer_norm_eps",
    "global_pool_conditions",
}  # fmt: skip
# What our yaml files cannot ask for: each setting with its only value.
ALWAYS = {
    "scheduler": {"rescale_betas_zero_snr": False, "trained_betas": None},
    "controlnet": {"controlnet_conditioning_channel_order": "rgb"},
}
MODELS = Path(__file__).parents[2] / "models"
# What a folder predicts and the width of its text -> the yaml that it fits.
YAMLS = {
    (768, "epsilon"): "cldm_v15.yaml",
    (1024, "epsilon"): "cldm_v21.yaml",
    (1024, "v_prediction"): "cldm_v21_v.yaml",
}


def check_settings(
    checkpoint: Checkpoint, params: Mapping[str, Any], label: object, only: Iterable[str] = ()
) -> None:
    """Raise ValueError where a folder says otherwise than the yaml parameters `params` of `label`.

    only: parts to look at, all where empty. Anything but a folder in diffusers' form passes.
    """
    said = {
        part: checkpoint.settings[part] for part in only or checkpoint.settings if part in checkpoint.settings
    }
    for part, config in said.items():
        for name, theirs, ours in _differences(config, _expected(part, params)):
            hint = f"; models/{fitting} fits it" if (fitting := _fitting(said)) else ""
            raise ValueError(
                f"{checkpoint.label}: its {part} has {name}={theirs}, but {label} means {ours}{hint}"
            )


def published_yaml(width: int, prediction: str = "epsilon") -> Path | None:
    """The published model of this text width and prediction; None where there is none."""
    name = YAMLS.get((width, prediction))
    return MODELS / name if name else None


def _expected(part: str, params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        expected = part_config(part, params)
    except ValueError:  # the yaml describes what diffusers does not have: the strict load decides
        return {}
    return expected | ALWAYS.get(part, {})


def _differences(
    config: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    levels = len(expected.get("block_out_channels", ()))
    for name, ours in expected.items():
        theirs = config.get(name)
        if name in IGNORED or theirs is None:
            continue
        if not _same(_listed(ours, theirs, levels), _listed(theirs, ours, levels)):
            yield name, theirs, ours


def _listed(value: Any, other: Any, levels: int) -> Any:
    """A number that stands for every level, written out where `other` is a list of them."""
    return [value] * levels if isinstance(other, list) and levels and isinstance(value, int) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _fitting(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    width = next(
        (one["cross_attention_dim"] for one in configs.values() if "cross_attention_dim" in one), None
    )
    kind = width, configs.get("scheduler", {}).get("prediction_type", "epsilon")
    return next((name for known, name in YAMLS.items() if known == kind), None)  # JSON may hold a list there
