"""Whether a folder in diffusers' form, or weights that become one, belong to a model's yaml, and to which.

Names and shapes of tensors are checked by every load. What they cannot show is compared here: the number of
attention heads, what the network predicts, the schedule, the scale of the latents. A wrong one of these gives
noise instead of a picture, and no error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.checkpoint import Checkpoint
from checkpoints.diffusers.configs import is_open_clip, part_config
from checkpoints.files.lazy import Values
from checkpoints.load import check_fit
from checkpoints.names.diffusers import COMPONENTS
from checkpoints.names.original import context_width, family
from ldm.config import model_settings
from ldm.util import instantiate_from_config

State = Mapping[str, Values]
Parts = Mapping[str, State]

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
STAGES = {"unet": "unet_config", "vae": "first_stage_config", "controlnet": "control_stage_config"}
WHOLE = {"unet", "vae", "text_encoder"}  # what a pipeline must have
SD1_WIDTH = 768  # of the text
FULL_BRANCH = "ControlNet"  # the only kind of branch that diffusers has
POSITIONS = ("position_embedding.weight", "positional_embedding")  # [n, d], in either family's names
LAYER = r"\.(?:layers|resblocks)\.(\d+)\."


def check_settings(
    checkpoint: Checkpoint, params: Mapping[str, Any], label: object, only: Iterable[str] = ()
) -> None:
    """Raise ValueError where a folder says otherwise than the yaml parameters `params` of `label`.

    only: parts to look at, all where empty. Anything but a folder in diffusers' form passes.
    """
    said = {part: config for part, config in checkpoint.settings.items() if not only or part in only}
    for part, config in said.items():
        for name, theirs, ours in _differences(config, _expected(part, params)):  # the first one decides
            widths = [one["cross_attention_dim"] for one in said.values() if "cross_attention_dim" in one]
            predicts = said.get("scheduler", {}).get("prediction_type", "epsilon")
            fitting = published_yaml(widths[0] if widths else None, predicts)
            hint = f"; models/{fitting.name} fits it" if fitting else ""
            raise ValueError(
                f"{checkpoint.label}: its {part} has {name}={theirs}, but {label} means {ours}{hint}"
            )


def published_yaml(width: object, prediction: object = "epsilon") -> Path | None:
    """The published model of this text width and prediction; None where there is none."""
    wanted = width, prediction  # not looked up: settings may hold a list here, which has no hash
    return next((MODELS / name for known, name in YAMLS.items() if known == wanted), None)


def choose_config(source: Path, parts: Parts, prediction: str | None) -> Path:
    """The published yaml for these parts: by the name of a control file, else by the width of the text.

    prediction: epsilon or v_prediction, None where unknown. Raises ValueError where that does not decide it.
    """
    named = [file for file in MODELS.glob("control_*.yaml") if source.name.startswith(file.stem)]
    if named and set(parts) == {"controlnet"}:
        return max(named, key=lambda file: len(file.stem))
    width = _text_width(parts) or SD1_WIDTH  # the autoencoder alone is the same for all
    either = published_yaml(width), published_yaml(width, "v_prediction")
    if all(either) and prediction is None and parts.keys() >= WHOLE:
        first, second = (f"--config models/{file.name}" for file in either)
        raise ValueError(
            f"{source} is SD 2.x, whose weights do not tell what they predict: add {first} for the 512-pixel "
            f"base model (noise), {second} for the 768-pixel one (velocity)"
        )
    config = published_yaml(width, prediction or "epsilon")
    if config is None:
        raise ValueError(f"{source}: no published model has {family(width)}: name its yaml by --config")
    return config


def read_params(config: Path) -> dict[str, Any]:
    """The yaml parameters of a whole model; errors as `ldm.config.read_config`, or ValueError."""
    params = model_settings(config).get("params") or {}
    missing = [stage for stage in (*STAGES.values(), "cond_stage_config") if stage not in params]
    if missing:
        raise ValueError(f"{config} describes no whole model: it has no {', '.join(missing)}")
    return params


def check_parts(source: Path, parts: Parts, config: Path) -> None:
    """Raise ValueError unless the parts, under the original names, are those of the yaml."""
    params = read_params(config)
    try:
        for part, state in parts.items():
            if part == "text_encoder":
                _check_text(source, state, params)
            else:
                _check_part(source, part, state, params[STAGES[part]])
    except ValueError as error:
        raise ValueError(f"{error}; the settings are those of {config}, --config names others") from None


def _expected(part: str, params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return part_config(part, params) | ALWAYS.get(part, {})
    except ValueError:  # the yaml describes what diffusers does not have: the strict load decides
        return {}


def _differences(
    config: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    levels = len(expected.get("block_out_channels", ()))
    for name, ours in expected.items():
        theirs = config.get(name)  # what a folder does not say is our default
        if name in IGNORED or theirs is None:
            continue
        one, other = _for_levels(ours, theirs, levels), _for_levels(theirs, ours, levels)
        if isinstance(one, float) and isinstance(other, int | float):
            is_same = math.isclose(one, other, rel_tol=1e-6)
        else:
            is_same = one == other
        if not is_same:
            yield name, theirs, ours


def _for_levels(value: Any, other: Any, levels: int) -> Any:
    """A number that stands for every level, written out where `other` is a list of them."""
    return [value] * levels if isinstance(other, list) and levels and isinstance(value, int) else value


def _check_part(source: Path, part: str, state: State, stage: Mapping[str, Any]) -> None:
    kind = stage["target"].rpartition(".")[2]
    if part == "controlnet" and kind != FULL_BRANCH:
        raise ValueError(f"a {kind} branch has no form in diffusers")
    with torch.device("meta"):
        built = instantiate_from_config(stage).state_dict()
    prefix = COMPONENTS[part].prefix
    wanted, got = ({prefix + name: tuple(t.shape) for name, t in one.items()} for one in (built, state))
    check_fit(wanted, set(), {str(source): got})


def _check_text(source: Path, state: State, params: Mapping[str, Any]) -> None:
    expected = part_config("text_encoder", params)
    layers = 1 + max((int(found[1]) for name in state if (found := re.search(LAYER, name))), default=-1)
    ran = layers - is_open_clip(params)  # the last of open_clip's is stored but never runs
    got = _text_width({"text_encoder": state}), ran
    if got != (expected["hidden_size"], expected["num_hidden_layers"]):
        raise ValueError(
            f"{source} has a text encoder of width {got[0]} with {ran} layers that run, where width "
            f"{expected['hidden_size']} and {expected['num_hidden_layers']} layers are asked for"
        )


def _text_width(parts: Parts) -> int | None:
    """Width of the text that these parts read or write; None where they do neither."""
    for state in parts.values():
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        tables = (shape[1] for name, shape in shapes.items() if name.endswith(POSITIONS))
        if width := context_width(shapes) or next(tables, None):
            return width
    return None
