"""Models from yaml files: the published three functions, and loading that never holds the weights twice.

A yaml may begin with `base: other.yaml`, a file beside it whose settings it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from cldm.cldm import ControlLDM
from cldm.diffusers_check import check_folder
from cldm.pruned import note_on, shrink_to_sources, use_zeros
from ldm.checkpoint import assign_weights
from ldm.diffusers_folder import open_weights
from ldm.diffusers_names import part_with, to_original
from ldm.lazy import read
from ldm.lora import merge_loras
from ldm.util import instantiate_from_config
from ldm.weight_files import get_state_dict
from quantize.loading import read_content

__all__ = [
    "BRANCHES",
    "create_meta_model",
    "create_model",
    "get_state_dict",
    "load_control",
    "load_model",
    "load_state_dict",
    "read_config",
    "with_branch",
]

CONTROL_PREFIX = "control_model."


def read_config(config: str | Path | DictConfig) -> DictConfig:
    """The settings of a yaml file with its `base:` files merged in; a DictConfig passes as it is.

    Raises FileNotFoundError, or ValueError for a file that is no yaml of a model or a ring of bases.
    """
    if isinstance(config, DictConfig):
        return config
    merged = _merge_bases(Path(config))
    if "model" not in merged:
        raise ValueError(f"{config} has no `model:` block, only {', '.join(map(str, merged)) or 'nothing'}")
    return merged


def create_model(config_path: str | Path | DictConfig) -> ControlLDM:
    """The model of a yaml file with random weights, on the CPU (published).

    Raises FileNotFoundError, or ValueError naming the yaml for a misspelt target or setting.
    """
    return _build(_settings(config_path), config_path).cpu()


def create_meta_model(config: str | Path | DictConfig) -> ControlLDM:
    """The model of a yaml file with shapes but no memory, except for the constants that it computes itself.

    Errors as `create_model`.
    """
    with torch.device("meta"):
        return _build(_settings(config), config)


def load_state_dict(ckpt_path: str | Path, location: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Everything stored in a weights file, under the file's own names, on `location` (published).

    Files and folders under diffusers' names come under the original ones. Errors as
    `ldm.diffusers_folder.open_weights`.
    """
    tensors = open_weights(ckpt_path).tensors
    if part := part_with(tensors):
        tensors = to_original(tensors, part)
    return {name: read(tensor).to(location) for name, tensor in tensors.items()}


def load_model(
    config: str | Path | DictConfig,
    *weights: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    use_ema: bool = False,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> ControlLDM:
    """The model of a yaml file with the weights of one or more files, ready to run on `device`.

    weights: files, or folders of diffusers, overlaid in order, such as a base model and a control branch
    alone. dtype: of all parameters,
    None for fp32. use_ema: take the moving averages that training checkpoints carry. loras: files merged into
    them, each with its weight. Errors as `create_model`, `ldm.checkpoint.assign_weights` and
    `ldm.lora.merge_loras`.
    """
    model = create_meta_model(config)
    for path in weights:
        check_folder(path, _settings(config)["params"], _label(config))
    assign_parts(model, *weights, dtype=dtype, use_ema=use_ema)
    merge_loras(model, loras)
    use_zeros(model.to(device), weights)
    return model.eval()


def load_control(
    config: str | Path | DictConfig,
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """One more control branch for the model of `config`, from a control-only or a full file.

    Errors as `load_model`; ValueError too for a file without a control branch.
    """
    settings = _settings(config)
    holder = nn.Module()
    with torch.device("meta"):
        holder.control_model = _build(settings["params"]["control_stage_config"], config)
    check_folder(path, settings["params"], _label(config), only=["controlnet"])
    assign_parts(holder, path, dtype=dtype, only=CONTROL_PREFIX)
    return holder.control_model.to(device).eval()


def with_branch(config: str | Path | DictConfig, kind: str) -> DictConfig:
    """The settings of a yaml with a control branch of `kind`, one of `BRANCHES`, for the same U-Net.

    Raises ValueError for an unknown kind or a yaml without a control branch; else as `read_config`.
    """
    if kind not in BRANCHES:
        raise ValueError(f"unknown branch {kind!r}: use {' or '.join(BRANCHES)}")
    settings = read_config(config).copy()
    if "control_stage_config" not in settings.model.get("params", {}):
        raise ValueError(f"{_label(config)} describes no control branch: it has no control_stage_config")
    branch = settings.model.params.control_stage_config
    if branch.target != BRANCHES[kind]:
        branch.target = BRANCHES[kind]
        branch.params.pop("lite", None)  # the lite branch's own settings
    return settings


def kind_of_branch(names: Iterable[str]) -> str | None:
    """Which of `BRANCHES` weights of these names are, alone or in a whole model; None where none is known."""
    names = {name.removeprefix(CONTROL_PREFIX) for name in names}
    return next((kind for kind, sign in SIGNS.items() if sign in names), None)


def assign_parts(model: nn.Module, *weights: Any, **options: Any) -> None:
    """`ldm.checkpoint.assign_weights`, of pruned weights too: `model` then becomes as small as they are.

    Its error also says where a file is quantized, its branch of the other kind, or pruned from another model.
    """
    try:
        try:
            assign_weights(model, *weights, **options)
        except ValueError:
            if not shrink_to_sources(model, weights):
                raise
            assign_weights(model, *weights, **options)
    except ValueError as error:
        files = [one for one in weights if isinstance(one, str | Path)]
        own_words = f"{error}{_other_kind(model, files) or note_on(files)}"
        raise ValueError(_quantized_words(files) or own_words) from None


def _quantized_words(files: Sequence[str | Path]) -> str:
    for path in files:
        with suppress(ValueError, OSError):  # whatever else it is
            read_content(path)
            return f"{path} is a quantized file: give it by --quantized (in Python quantized=) alone"
    return ""


def _other_kind(model: nn.Module, weights: Sequence[str | Path]) -> str:
    own = kind_of_branch(model.state_dict())
    for path in weights:
        with suppress(ValueError, OSError):  # the file itself is what is wrong
            kind = kind_of_branch(open_weights(path).tensors)
            if own and kind not in (own, None):
                return (
                    f"; {path} holds a {kind} branch, the yaml describes a {own} one: take the other's yaml"
                )
    return ""


def _settings(config: str | Path | DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(read_config(config).model, resolve=True)  # type: ignore[return-value]


def _label(source: str | Path | DictConfig) -> object:
    return "the model's settings" if isinstance(source, DictConfig) else source


def _build(settings: dict[str, Any], source: str | Path | DictConfig) -> Any:
    label = _label(source)
    try:
        return instantiate_from_config(settings)
    except KeyError as error:
        raise ValueError(f"{label}: a setting is missing: {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label}: {error}") from error


def _merge_bases(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    if path.resolve() in seen:
        ring = " -> ".join(one.name for one in (*seen, path))
        raise ValueError(f"{seen[0]}: its bases form a ring, {ring}")
    if not path.is_file():
        asked_by = f", the base of {seen[-1].name}" if seen else ""
        known = ", ".join(sorted(one.name for one in path.parent.glob("*.yaml"))) or "no yaml at all"
        raise FileNotFoundError(f"no model yaml {path}{asked_by}; {path.parent} has {known}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable yaml: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is not a model's yaml: it must hold `model:` with target: and params:")
    base = config.pop("base", None)
    if base is None:
        return config
    return OmegaConf.merge(_merge_bases(path.parent / base, (*seen, path.resolve())), config)


BRANCHES = {"full": "cldm.cldm.ControlNet", "lite": "cldm.lite.ControlLite"}
SIGNS = {"full": "input_hint_block.0.weight", "lite": "stem.weight"}  # names that only this kind has
