"""Any weights file as a flat dictionary of tensors, names as in the file.

The kind of a file is told by its content (`ldm.file_kinds`), not by its suffix. Tensors are mapped from the
file wherever its format allows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.file_kinds import kind_of
from ldm.pickles import is_mappable, load_pickle


@dataclass(frozen=True)
class WeightFile:
    """What a weights file holds.

    tensors: by the file's own names; others: names of entries that are no tensors; mapped: whether the
    tensors fill memory only as they are read.
    """

    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    mapped: bool


def read_weight_file(path: str | Path) -> WeightFile:
    """The tensors of a .safetensors, .ckpt, .pth, .pt or .bin file, taken out of `state_dict` where nested.

    A mapped file must not be overwritten in place while its tensors live; write beside it and rename. Raises
    FileNotFoundError, or ValueError for a file that is no weights file, is damaged or is hostile.
    """
    path = Path(path)
    if kind_of(path) == "safetensors":
        return WeightFile(_read_safetensors(path), (), mapped=True)
    saved = get_state_dict(outer := load_pickle(path))
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds a whole Python object, not weights: save its state_dict() and use that"
        )
    tensors = {name: value.detach() for name, value in saved.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, only {', '.join(map(str, list(saved)[:3])) or 'nothing'}")
    others = {str(name) for name in outer if name != "state_dict"} - tensors.keys()
    return WeightFile(tensors, tuple(sorted(others)), mapped=is_mappable(path))


def get_state_dict(saved: Any) -> Any:
    """What is nested under `state_dict`, or `saved` itself."""
    return saved.get("state_dict", saved) if isinstance(saved, dict) else saved


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2]
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {reason}") from None
