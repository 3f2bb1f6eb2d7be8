"""Any weights file as a flat dictionary of tensors, names as in the file.

The kind of a file is told by its content (`ldm.file_kinds`), not by its suffix. Tensors are mapped from the
file wherever its format allows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.file_kinds import kind_of
from ldm.lazy import Mapped, Values
from ldm.pickles import is_mappable, load_pickle


@dataclass(frozen=True)
class WeightFile:
    """What a weights file holds.

    tensors: by the file's own names; others: names of entries that are no tensors, with the bytes of tensors
    inside; mapped: whether the tensors fill memory only as they are read; metadata: texts of a safetensors
    file about itself.
    """

    tensors: dict[str, Values]
    others: Mapping[str, int]
    mapped: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weight_file(path: str | Path) -> WeightFile:
    """The tensors of a .safetensors, .ckpt, .pth, .pt or .bin file, taken out of `state_dict` where nested.

    A mapped file must not be overwritten in place while its tensors live; write beside it and rename. Raises
    FileNotFoundError, or ValueError for a file that is no weights file, is damaged or is hostile.
    """
    path = Path(path)
    if kind_of(path) == "safetensors":
        return _read_safetensors(path)
    saved = get_state_dict(outer := load_pickle(path))
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds a whole Python object, not weights: save its state_dict() and use that"
        )
    tensors = {name: value.detach() for name, value in saved.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, only {', '.join(map(str, list(saved)[:3])) or 'nothing'}")
    others = {
        str(name): _bytes_inside(value)
        for name, value in outer.items()
        if name != "state_dict" and name not in tensors
    }
    return WeightFile(tensors, others, mapped=is_mappable(path))


def open_weight_file(path: str | Path) -> WeightFile:
    """As `read_weight_file`, but with lazy tensors of a file that can be mapped, for walks over all of it."""
    file = read_weight_file(path)
    if not file.mapped:
        return file
    return replace(file, tensors=Mapped(file.tensors, lambda: read_weight_file(path).tensors).lazy())


def get_state_dict(saved: Any) -> Any:
    """What is nested under `state_dict`, or `saved` itself."""
    return saved.get("state_dict", saved) if isinstance(saved, dict) else saved


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # a file, not a dict
            tensors = {name: file.get_tensor(name) for name in names}
            return WeightFile(tensors, {}, mapped=True, metadata=file.metadata() or {})
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2]
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {reason}") from None


def _bytes_inside(value: Any) -> int:
    """Of the tensors anywhere inside; a container that holds itself is counted once."""
    total, waiting, seen = 0, [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            total += one.nbytes
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, dict) else one)
    return total
