"""What a weights file holds, from its header: names, shapes, dtypes and sizes, but no numbers.

Gigabytes take as long as kilobytes, and torch is not needed. The kind of a file is told by its content, not
by its suffix: many files in circulation carry a wrong one. A header is believed only as far as it agrees with
the size of its file.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from checkpoints.files.pickles import PickleFile, describe_pickle
from checkpoints.files.unpickler import DescribedTensor
from common.shell import printable

HEAD_BYTES = 64  # enough to recognise every kind below
ZIP_MAGIC = b"PK\x03\x04"  # four bytes: the length before a safetensors header may begin with PK
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's number, after two bytes of pickle header
GGUF_MAGIC = b"GGUF"
OTHERS = {  # beginning -> what the file is
    b"<": "a web page, not weights: the link asked for a login or a licence; fetch it in a browser",
    b"version https://git-lfs": "a Git LFS pointer, not the weights that it points to: run `git lfs pull`",
    GGUF_MAGIC: "a GGUF file, quantized for other programs: take the .safetensors file that it was made from",
    b"\x80": "a plain Python pickle, not a file of torch.save: refused, for reading it could run anything",
}
SUFFIXES = (".safetensors", ".ckpt", ".pth")
SAFETENSORS_BRACE = 8  # the JSON header begins after its own length, eight bytes
METADATA = "__metadata__"  # the one entry of a safetensors header that is no tensor
MAX_HEADER_BYTES = 1 << 25  # that of a full SD1.5 model has 200 kB; LoRA trainers write megabytes of settings
MAX_DEPTH = 4  # of dictionaries in dictionaries: IP-adapters and embeddings have two
TRAINERS_ENTRIES = ("model", "module")  # where training programs put a model's tensors; DeepSpeed the latter
# What DataParallel, torch.compile and Lightning's strategies put in front of every name.
WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
MAX_NESTED = 10_000  # names in them: dictionaries that share their entries could have any number


class TensorHeader(NamedTuple):
    """One tensor; dtype as safetensors writes it, such as F16."""

    dtype: str  # not torch's, which is not needed here
    shape: tuple[int, ...]
    nbytes: int  # of the tensor, not of the storage that it may share

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds. kind: `safetensors`, or `zip` or `legacy`, both of torch.save; size: its bytes.

    others: name of each entry beside the weights -> bytes of the tensors in it. nested: where there are no
    weights, the names of tensors in dictionaries of dictionaries, joined by dots. metadata: of safetensors.
    pickle: what torch reads the tensors of its own files by.
    """

    kind: str
    size: int
    tensors: Mapping[str, TensorHeader]
    others: Mapping[str, int] = field(default_factory=dict)
    nested: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    pickle: PickleFile | None = None


def read_header(path: str | Path) -> Header:
    """The header of a weights file of any form.

    Raises OSError, or ValueError in one sentence for a file that is no weights, damaged or hostile.
    """
    path = Path(path)
    kind = _kind_at(path)
    return _safetensors_header(path) if kind == "safetensors" else _pickle_header(path, kind)


def get_state_dict(saved: Any) -> Any:
    """What is nested under `state_dict`, or `saved` itself."""
    return saved.get("state_dict", saved) if isinstance(saved, dict) else saved


def weights_in(saved: Any) -> Any:
    """The dictionary of tensors in what a pickle holds: under `state_dict`, or where trainers put a model."""
    inner = get_state_dict(saved)
    if not isinstance(inner, dict):
        return inner
    return next((inner[name] for name in TRAINERS_ENTRIES if isinstance(inner.get(name), dict)), inner)


def wrapper_of(names: Iterable[str]) -> str:
    """What modules around the model have put in front of all of `names`; "" where there is nothing."""
    names, prefix = list(names), ""
    while names and (more := next((one for one in WRAPPERS if _all_start(names, prefix + one)), None)):
        prefix += more
    return prefix


def parse_settings(text: str | bytes, label: object) -> dict[str, Any]:
    """The JSON object that `label` holds; ValueError in one sentence where it holds none."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{label} is not readable JSON with settings: fetch it again")
    return settings


def _all_start(names: list[str], prefix: str) -> bool:
    return all(name.startswith(prefix) and name != prefix for name in names)


def nested_names(saved: Mapping[Any, Any], depth: int = MAX_DEPTH) -> Iterator[str]:
    """The keys of dictionaries in dictionaries, joined by dots, the innermost level last."""
    for name, value in saved.items():
        if isinstance(value, dict) and value and depth > 1:
            yield from (f"{name}.{rest}" for rest in nested_names(value, depth - 1))
        else:
            yield str(name)


def _kind_at(path: Path) -> str:
    """Only regular files are opened: to open a pipe would wait for ever."""
    if not path.exists():
        raise FileNotFoundError(f"no weights file {path}; check the path")
    if path.is_dir():
        inside = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        hint = f"for example {inside[0]}" if inside else "but this one holds none"
        raise ValueError(f"{path} is a folder: name a .safetensors, .ckpt or .pth file in it, {hint}")
    if not path.is_file():
        raise ValueError(
            f"{path} is a pipe, a socket or a device, not a file: save the weights to disk first"
        )
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(ZIP_MAGIC):
        return "zip"  # of torch since 1.6, or any other archive: its members tell
    if head[2:].startswith(LEGACY_MAGIC):
        return "legacy"
    is_text = b"\0" not in head[:SAFETENSORS_BRACE] and head.lstrip().startswith(b"<")
    if head[SAFETENSORS_BRACE:].startswith(b"{") and not is_text and not head.startswith(GGUF_MAGIC):
        return "safetensors"
    raise ValueError(f"{path} is {_what_else(head)}")


def _what_else(head: bytes) -> str:
    if not head:  # what downloads leave, said apart: each has another cure
        return "empty (0 bytes): the download did not start; fetch it again"
    if not head.strip(b"\0"):
        return "nothing but zeros at its start: the download only reserved its place; fetch it again"
    known = (what for start, what in OTHERS.items() if head.lstrip().startswith(start))
    return next(known, f"not a weights file (it starts with {head[:8]!r}): use .safetensors, .ckpt or .pth")


def _safetensors_header(path: Path) -> Header:
    """Checked by the library, and for what that lets pass: a header too long, or that says a thing twice."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(SAFETENSORS_BRACE).ljust(SAFETENSORS_BRACE, b"\0"))[0]
        if length > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} is damaged or hostile: its header claims {length} bytes, weights need few"
            )
        text = file.read(length)  # a copy of what the library reads: it hides names that come twice
    try:
        with safe_open(path, framework="numpy"):  # which holds offsets, shapes and dtypes against the file
            entries = json.loads(text, object_pairs_hook=_without_doubles)
    except SafetensorError as error:
        reason = printable(str(error).rpartition(": ")[2])
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or hostile, fetch it again: {printable(error)}") from None
    metadata = entries.pop(METADATA, {})
    tensors, lacks = {}, len(wrapper_of(entries))
    for name, one in entries.items():
        start, end = one["data_offsets"]
        tensors[name[lacks:]] = TensorHeader(one["dtype"], tuple(one["shape"]), end - start)
    return Header("safetensors", path.stat().st_size, tensors, metadata=metadata)


def _pickle_header(path: Path, kind: str) -> Header:
    described = describe_pickle(path, legacy=kind == "legacy")
    saved = weights_in(outer := described.saved)  # trainers nest the weights beside their own state
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds a whole Python object, not weights: save its state_dict() and use that"
        )
    found = {str(name): one for name, one in saved.items() if isinstance(one, DescribedTensor)}
    lacks = len(wrapper_of(found))
    tensors = {
        name[lacks:]: TensorHeader(one.dtype, one.shape, math.prod(one.shape) * one.itemsize)
        for name, one in found.items()
    }
    others = {
        str(name): _size(one) for name, one in outer.items() if one is not saved and str(name) not in found
    }
    nested = () if tensors else tuple(islice(nested_names(saved), MAX_NESTED))
    return Header(kind, path.stat().st_size, tensors, others, nested, pickle=described)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {printable(name)} twice")
    return entries


def _size(saved: Any) -> int:
    """Bytes of all tensors anywhere in `saved`, data that several share counted once."""
    storages, todo, seen = {}, [saved], set()
    while todo:
        one = todo.pop()
        if isinstance(one, DescribedTensor):
            storages[one.storage.key] = one.storage.nbytes
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            todo.extend(one.values() if isinstance(one, dict) else one)
    return sum(storages.values())
