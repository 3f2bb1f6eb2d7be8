"""Models from yaml files: the published three functions, and loading that never holds the weights twice.

A yaml may begin with `base: other.yaml`, a file beside it whose settings it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from checkpoints.diffusers.check import check_settings
from checkpoints.files.headers import get_state_dict
from checkpoints.files.lazy import read
from checkpoints.load import assign_weights
from checkpoints.lora.merge import merge_loras
from checkpoints.names.diffusers import to_original
from cldm.cldm import ControlLDM
from cldm.compressed.pruned import shrink, use_zeros
from ldm.config import build_part, config_label, create_meta_model, model_settings, read_config

__all__ = [
    "BRANCHES",
    "create_model",
    "fresh_branch",
    "get_state_dict",
    "load_control",
    "load_model",
    "load_state_dict",
    "with_branch",
]

CONTROL_PREFIX = "control_model."  # published


def create_model(config_path: str | Path | DictConfig) -> ControlLDM:
    """The model of a yaml file with random weights, on the CPU (published).

    Raises FileNotFoundError, or ValueError naming the yaml for a misspelt target or setting.
    """
    return build_part(model_settings(config_path), config_path).cpu()


def load_state_dict(ckpt_path: str | Path, location: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Everything stored in a weights file, under the file's own names, on `location` (published).

    Files and folders under diffusers' names come under the original ones. Errors as
    `checkpoints.checkpoint.open_checkpoint`.
    """
    checkpoint = open_checkpoint(ckpt_path)
    tensors = checkpoint.tensors()
    if checkpoint.component:
        tensors = to_original(tensors, checkpoint.component)
    return {name: read(tensor).to(location) for name, tensor in tensors.items()}


def load_model(
    config: str | Path | DictConfig,
    *weights: str | Path | Checkpoint,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    use_ema: bool = False,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> ControlLDM:
    """The model of a yaml file with the weights of one or more files, ready to run on `device`.

    weights: files, or folders of diffusers, overlaid in order, such as a base model and a control branch
    alone. dtype: of all parameters, None for fp32. use_ema: take the averages of a training checkpoint.
    loras: files merged into them, each with its weight. Errors as `create_model`, `assign_parts` and
    `checkpoints.lora.merge.merge_loras`.
    """
    model = create_meta_model(config)
    opened = [open_checkpoint(one) for one in weights]
    for one in opened:
        check_settings(one, model_settings(config)["params"], config_label(config))
    assign_parts(model, *opened, dtype=dtype, use_ema=use_ema)
    merge_loras(model, loras)  # on the CPU, before the weights move
    use_zeros(model.to(device), opened)
    return model.eval()  # published files are for inference; training says otherwise


def load_control(
    config: str | Path | DictConfig,
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """One more control branch for the model of `config`, from a control-only or a full file.

    Errors as `load_model`; ValueError too for a file without a control branch.
    """
    settings = model_settings(config)
    holder = nn.Module()
    with torch.device("meta"):  # memory comes with the weights
        holder.control_model = build_part(settings["params"]["control_stage_config"], config)
    checkpoint = open_checkpoint(path)
    check_settings(checkpoint, settings["params"], config_label(config), only=["controlnet"])
    assign_parts(holder, checkpoint, dtype=dtype, only=CONTROL_PREFIX)
    return holder.control_model.to(device).eval()


def with_branch(config: str | Path | DictConfig, kind: str) -> DictConfig:
    """The settings of a yaml with a control branch of `kind`, one of `BRANCHES`, for the same U-Net.

    Raises ValueError for an unknown kind or a yaml without a control branch; else as `read_config`.
    """
    if kind not in BRANCHES:
        raise ValueError(f"unknown branch {kind!r}: use {' or '.join(BRANCHES)}")
    settings = read_config(config).copy()
    if "control_stage_config" not in settings.model.get("params", {}):
        raise ValueError(
            f"{config_label(config)} has no control_stage_config: it describes no control branch"
        )
    branch = settings.model.params.control_stage_config
    if branch.target != BRANCHES[kind]:
        branch.target = BRANCHES[kind]
        branch.params.pop("lite", None)  # the lite branch's own settings
    return settings


def fresh_branch(config: str | Path | DictConfig, seed: int) -> dict[str, Tensor]:
    """Weights of an untrained branch of the yaml's kind, without prefix; the same for the same seed."""
    with torch.random.fork_rng([]):  # GPUs draw nothing here
        torch.manual_seed(seed)
        return build_part(model_settings(config)["params"]["control_stage_config"], config).state_dict()


def kind_of_branch(names: Iterable[str]) -> str | None:
    """Which of `BRANCHES` weights of these names are, alone or in a whole model; None where none is known."""
    names = {name.removeprefix(CONTROL_PREFIX) for name in names}
    return next((kind for kind, key in MARKER_KEYS.items() if key in names), None)


def assign_parts(model: nn.Module, *sources: Source, **options: Any) -> None:
    """`checkpoints.load.assign_weights`, of pruned weights too: `model` then becomes as small as they are.

    Its error also says where a file is quantized, its branch of the other kind, or pruned from another model.
    """
    opened = [open_checkpoint(one) for one in sources]
    for one in opened:
        if one.is_quantized:
            raise ValueError(
                f"{one.label} is a quantized file: give it by --quantized (in Python quantized=) alone"
            )
    records = {one.label: record for one in opened if (record := one.pruning)}
    own = kind_of_branch(model.state_dict())
    try:
        assign_weights(model, *opened, shrink=shrink, **options)
    except ValueError as error:
        why = [words for one in opened if (words := _other_kind(own, one))]
        for label, record in records.items():
            why.append(f"; {label} is pruned, from the model of {record.config}: take that yaml")
        raise ValueError(f"{error}{why[0] if why else ''}") from None


def _other_kind(own: str | None, one: Checkpoint) -> str:
    is_theirs = "controlnet" in (one.component, *one.settings)  # in diffusers' names, which knows one kind
    kind = "full" if is_theirs else kind_of_branch(one.header.tensors)
    if not own or kind in (own, None):
        return ""
    return f"; {one.label} holds a {kind} branch, the yaml describes a {own} one: take the other's yaml"


BRANCHES = {"full": "cldm.cldm.ControlNet", "lite": "cldm.lite.ControlLite"}
MARKER_KEYS = {"full": "input_hint_block.0.weight", "lite": "stem.weight"}  # names that only this kind has
