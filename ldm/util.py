"""Objects from yaml, and the one place where a device and a dtype are chosen.

The `target:` / `params:` grammar is the published one, so that published yaml files build our classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from typing import Any, TypeVar

import torch

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # as flags and yaml call them


def get_obj_from_str(path: str) -> Any:
    """The object behind a dotted path such as `cldm.cldm.ControlNet`.

    Raises ValueError when the path has no module part, the module is missing or holds no such name.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(f"target {path!r} has no module: write package.module.Name")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        # A missing third-party package is another problem than a mistyped target: let it speak for itself.
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(f"target {path!r}: there is no module {error.name!r}; check the spelling") from None
    except AttributeError:
        raise ValueError(f"target {path!r}: module {module_name!r} has no {name!r}") from None


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Build `config["target"](**config["params"])`.

    Raises ValueError when `target` is absent.
    """
    if "target" not in config:
        raise ValueError(f"a model part needs a `target:` line; this one has only {sorted(config)}")
    return get_obj_from_str(config["target"])(**(config.get("params") or {}))


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is CUDA where there is a GPU, else Apple's MPS, else the CPU.

    Raises ValueError for a device that torch does not know or that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch sees {torch.cuda.device_count()} CUDA GPUs"
        raise ValueError(f"device {name!r} asked for, but {seen}; use --device auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' asked for, but this machine has none; use --device auto or cpu")
    return device


def pick_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The dtype to compute in: `fp32`, `fp16` or `bf16`; `auto` is fp16 on CUDA and fp32 elsewhere.

    Raises ValueError for another name.
    """
    if name == "auto":
        return torch.float16 if device is not None and device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def config_from(cls: type[T], params: Mapping[str, Any], owner: str, inert: Set[str] = frozenset()) -> T:
    """The dataclass `cls` of yaml `params` less the `inert` ones, which change nothing; lists become tuples.

    Raises ValueError for an entry that is neither: a misspelt setting must not pass in silence.
    """
    allowed = {field.name for field in fields(cls)}
    unknown = sorted(set(params) - allowed - inert)
    if unknown:
        raise ValueError(f"{owner} does not know {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}")
    known = {name: value for name, value in params.items() if name in allowed}
    return cls(**{name: tuple(value) if _is_list(value) else value for name, value in known.items()})


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)  # OmegaConf's lists too
