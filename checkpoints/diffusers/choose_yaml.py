"""Which yaml the weights of a model belong to, and whether they fit it, before its settings go with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.compatibility import check_fit, context_width, family
from checkpoints.diffusers.check import MODELS, published_yaml
from checkpoints.diffusers.configs import is_open_clip, text_config
from checkpoints.files.lazy import Values
from checkpoints.names.diffusers import COMPONENTS
from ldm.config import model_settings
from ldm.util import instantiate_from_config

State = Mapping[str, Values]
Parts = Mapping[str, State]

STAGES = {"unet": "unet_config", "vae": "first_stage_config", "controlnet": "control_stage_config"}
WHOLE = {"unet", "vae", "text_encoder"}  # what a pipeline must have
SD1_WIDTH = 768
FULL_BRANCH = "ControlNet"  # the only kind of branch that diffusers has
POSITIONS = ("position_embedding.weight", "positional_embedding")  # [n, d], in either family's names
LAYER = r"\.(?:layers|resblocks)\.(\d+)\."


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
    expected = text_config(params)
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
