"""Any weights file as a flat dictionary of tensors, names as in the file.

The kind of a file is told by its content (`checkpoints.files.kinds`), not by its suffix. Tensors are mapped
from the file wherever its format allows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints.files.headers import get_state_dict, read_header
from checkpoints.files.kinds import quote
from checkpoints.files.lazy import Mapped, Values
from checkpoints.files.pickles import is_mappable, load_pickle
from checkpoints.names.foreign import refuse_foreign


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
    header = read_header(path)
    if header.kind == "safetensors":
        return WeightFile(_read_safetensors(path), {}, mapped=True, metadata=header.metadata)
    if not header.tensors:
        refuse_foreign(path, header.nested)
        raise ValueError(f"{path} holds no tensors, only {quote(header.nested) or 'nothing'}")
    saved = get_state_dict(load_pickle(path))
    tensors = {str(name): value.detach() for name, value in saved.items() if isinstance(value, Tensor)}
    return WeightFile(tensors, header.others, mapped=is_mappable(path))


def open_weight_file(path: str | Path) -> WeightFile:
    """As `read_weight_file`, but with lazy tensors of a file that can be mapped, for walks over all of it."""
    file = read_weight_file(path)
    if not file.mapped:
        return file
    return replace(file, tensors=Mapped(file.tensors, lambda: read_weight_file(path).tensors).lazy())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
    except SafetensorError as error:  # the header is in order: a dtype that this torch does not have
        raise ValueError(f"{path} cannot be read: {error}") from None
