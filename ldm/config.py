"""Models from yaml files: settings, with those of `base:` files merged in, and networks built from them.

A yaml may begin with `base: other.yaml`, a file beside it whose settings it changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ldm.util import instantiate_from_config


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


def config_files(config: Path) -> list[Path]:
    """A yaml file and those that it is based on, itself first. Errors as `read_config`."""
    read_config(config)
    files, path = [], config
    while path:
        files.append(path)
        base = OmegaConf.load(path).get("base")
        path = path.parent / base if base else None
    return files


def create_meta_model(config: str | Path | DictConfig) -> nn.Module:
    """The model of a yaml file with shapes but no memory, except for the constants that it computes itself.

    Errors as `build_part` and `read_config`.
    """
    with torch.device("meta"):  # what a network computes itself asks for the CPU by name
        return build_part(model_settings(config), config)


def model_settings(config: str | Path | DictConfig) -> dict[str, Any]:
    """`target` and `params` of the model in a yaml, as plain data. Errors as `read_config`."""
    return OmegaConf.to_container(read_config(config).model, resolve=True)  # type: ignore[return-value]


def config_label(source: str | Path | DictConfig) -> object:
    """What messages call a yaml."""
    return "the model's settings" if isinstance(source, DictConfig) else source


def build_part(settings: dict[str, Any], source: str | Path | DictConfig) -> Any:
    """The network that `settings` of the yaml `source` describe.

    Raises ValueError naming the yaml for a misspelt target or a setting that is missing or wrong.
    """
    label = config_label(source)
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
    base = config.pop("base", None)  # it is no setting of the model
    if base is None:
        return config
    return OmegaConf.merge(_merge_bases(path.parent / base, (*seen, path.resolve())), config)
