"""Where LoRA files of diffusers and PEFT keep their alpha: not among the tensors, but in settings.

Diffusers writes them into the metadata of the file, PEFT into adapter_config.json beside it. Without either,
alpha is the rank, which leaves up @ down as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Alphas = Callable[[str], float | None]  # name of what is changed -> alpha, None where it is the rank

METADATA_ENTRY = "lora_adapter_metadata"  # of diffusers
PEFT_SETTINGS = "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of names in PEFT's own files
UNUSUAL = {"use_rslora": "rank-stabilised scaling (rsLoRA)", "use_dora": "a DoRA"}


def stored_alphas(path: Path, metadata: Mapping[str, str], modules: Iterable[str]) -> Alphas:
    """What the settings of the LoRA file `path` say of the alpha of each of its `modules`.

    Raises ValueError for settings that are damaged, missing where they must be, or of another method.
    """
    if any(module.startswith(PEFT_PREFIX) for module in modules):
        beside = path.with_name(PEFT_SETTINGS)
        if not beside.is_file():
            raise ValueError(
                f"{path} is a file of PEFT, which needs its {PEFT_SETTINGS} beside it: fetch that too"
            )
        settings = {
            f"{PEFT_PREFIX}{name}": value for name, value in _parsed(beside, beside.read_text()).items()
        }
    else:
        settings = _parsed(path, metadata.get(METADATA_ENTRY, "{}"))
    for name, value in settings.items():
        if value and (method := UNUSUAL.get(name.rpartition(".")[2])):
            raise ValueError(f"{path} is trained with {method}: take a plain LoRA")
    return lambda module: _alpha(settings, module)


def _alpha(settings: Mapping[str, Any], module: str) -> float | None:
    prefix = PEFT_PREFIX if module.startswith(PEFT_PREFIX) else module.partition(".")[0] + "."
    own = settings.get(f"{prefix}alpha_pattern") or {}
    matching = (alpha for name, alpha in own.items() if module.endswith(f".{name}"))
    return next(matching, settings.get(f"{prefix}lora_alpha"))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: the settings of its LoRA are no readable JSON: fetch it again")
    return settings
