"""What a weights file holds, from its header: names, shapes, dtypes and sizes, but no numbers.

Gigabytes take as long as kilobytes, and torch is not needed. A header is believed only as far as it agrees
with the size of its file.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from checkpoints.files.kinds import SAFETENSORS_BRACE, kind_of, printable
from checkpoints.files.pickle_header import read_pickle_file
from checkpoints.files.pickle_machine import Pickled

METADATA = "__metadata__"  # the one entry of a safetensors header that is no tensor
MAX_HEADER_BYTES = 1 << 25  # that of a full SD1.5 model has 200 kB; LoRA trainers write megabytes of settings
MAX_DEPTH = 4  # of dictionaries in dictionaries: IP-adapters and embeddings have two


class TensorHeader(NamedTuple):
    """One tensor; dtype as safetensors writes it, such as F16."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds. kind: as `checkpoints.files.kinds.kind_of`; size: of the file, bytes.

    others: name of each entry beside the weights -> bytes of the tensors in it. nested: where there are no
    weights, the names of tensors in dictionaries of dictionaries, joined by dots. metadata: of safetensors.
    """

    kind: str
    size: int
    tensors: Mapping[str, TensorHeader]
    others: Mapping[str, int] = field(default_factory=dict)
    nested: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: str | Path) -> Header:
    """The header of a weights file of any form.

    Raises FileNotFoundError, or ValueError in one sentence for a file that is no weights file, is damaged or
    is hostile.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        entries = read_safetensors_header(path)
        metadata = entries.pop(METADATA, {})
        tensors = {
            name: TensorHeader(
                one["dtype"], tuple(one["shape"]), one["data_offsets"][1] - one["data_offsets"][0]
            )
            for name, one in entries.items()
        }
        return Header(kind, path.stat().st_size, tensors, metadata=metadata)
    return _pickle_header(path, kind)


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The entries of a safetensors header, its metadata among them; checked by the library, and then more.

    Raises ValueError for a header that is too long, says a thing twice or does not fit the file.
    """
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(SAFETENSORS_BRACE).ljust(SAFETENSORS_BRACE, b"\0"))[0]
        if length > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} is damaged or hostile: its header claims {length} bytes, weights need few"
            )
        text = file.read(length)
    try:
        with safe_open(path, framework="numpy"):  # which holds offsets, shapes and dtypes against the file
            return json.loads(text, object_pairs_hook=_without_doubles)
    except SafetensorError as error:
        reason = printable(str(error).rpartition(": ")[2])
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or hostile, fetch it again: {printable(error)}") from None


def get_state_dict(saved: Any) -> Any:
    """What is nested under `state_dict`, or `saved` itself."""
    return saved.get("state_dict", saved) if isinstance(saved, dict) else saved


def nested_names(saved: Mapping[Any, Any], depth: int = MAX_DEPTH) -> Iterator[str]:
    """The keys of dictionaries in dictionaries, joined by dots, the innermost level last."""
    for name, value in saved.items():
        inner = list(nested_names(value, depth - 1)) if isinstance(value, dict) and depth > 1 else []
        yield from (f"{name}.{rest}" for rest in inner) if inner else (str(name),)


def _pickle_header(path: Path, kind: str) -> Header:
    outer = read_pickle_file(path).saved
    saved = get_state_dict(outer)
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds a whole Python object, not weights: save its state_dict() and use that"
        )
    tensors = {str(name): _header(one) for name, one in saved.items() if isinstance(one, Pickled)}
    others = {
        str(name): _size(one) for name, one in outer.items() if one is not saved and str(name) not in tensors
    }
    nested = () if tensors else tuple(nested_names(saved))
    return Header(kind, path.stat().st_size, tensors, others, nested)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {printable(name)} twice")
    return entries


def _header(tensor: Pickled) -> TensorHeader:
    return TensorHeader(tensor.dtype, tensor.shape, math.prod(tensor.shape) * tensor.itemsize)


def _size(saved: Any) -> int:
    """Bytes of all tensors anywhere in `saved`, data that several share counted once."""
    storages, todo, seen = {}, [saved], set()
    while todo:
        one = todo.pop()
        if isinstance(one, Pickled):
            storages[one.storage.key] = one.storage.nbytes
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            todo.extend(one.values() if isinstance(one, dict) else one)
    return sum(storages.values())
