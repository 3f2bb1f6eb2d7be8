"""Any weights file as a flat dictionary of tensors, names as in the file.

The kind of a file is told by its first bytes, not by its suffix: many files in circulation carry a wrong one.
Tensors are mapped from the file wherever its format allows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.pickles import is_mappable, load_pickle

HEAD_BYTES = 64  # enough to recognise every kind below
ZIP_MAGIC = b"PK"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's number, after two bytes of pickle header
PICKLE_MAGIC = b"\x80"
LFS_MAGIC = b"version https://git-lfs"
SUFFIXES = (".safetensors", ".ckpt", ".pth")
SAFETENSORS_BRACE = 8  # the JSON header begins after its own length, eight bytes


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
    if _kind(path) == "safetensors":
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


def _kind(path: Path) -> str:
    """`torch` or `safetensors`; raises for everything that is neither."""
    if not path.exists():
        raise FileNotFoundError(f"no weights file {path}; check the path")
    if path.is_dir():
        inside = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        hint = f"for example {inside[0]}" if inside else "but this one holds none"
        raise ValueError(f"{path} is a folder: name a .safetensors, .ckpt or .pth file in it, {hint}")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(ZIP_MAGIC) or head[2:].startswith(LEGACY_MAGIC):
        return "torch"
    if head[SAFETENSORS_BRACE:].startswith(b"{") and not head.lstrip().startswith(b"<"):
        return "safetensors"
    raise ValueError(f"{path} is {_what_else(head)}")


def _what_else(head: bytes) -> str:
    if not head:
        return "empty (0 bytes): the download did not start; fetch it again"
    if head.lstrip().startswith(b"<"):
        return "a web page, not weights: the link asked for a login or a licence; fetch it in a browser"
    if head.startswith(LFS_MAGIC):
        return "a Git LFS pointer, not the weights that it points to: run `git lfs pull`"
    if head.startswith(PICKLE_MAGIC):
        return "a plain Python pickle, not a file of torch.save: refused, for reading it could run anything"
    return f"not a weights file (it starts with {head[:8]!r}): use .safetensors, .ckpt or .pth"
