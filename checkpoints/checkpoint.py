"""Weights from anywhere, opened once: a file of any form, a folder of diffusers or a dictionary.

Opening reads headers alone and needs no torch; whoever loads, inspects, converts, quantizes or prunes takes
the `Checkpoint`, never the path again. What does not load here opens too: it is refused as its tensors are
asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.diffusers.folder import SCHEDULER, Component, check_component, find_components, read_settings
from checkpoints.files.headers import Header, TensorHeader, read_header
from checkpoints.names.diffusers import COMPONENTS, detect_component, to_original
from checkpoints.names.original import PART_LABELS, missing_prefix, normalize_names
from checkpoints.names.recognize import refuse_foreign
from common.shell import quote

if TYPE_CHECKING:
    from torch import Tensor

    from checkpoints.files.lazy import Values
    from quantize.prune.record import Record

TRAINER_STATE = "entries beside the weights (optimizer, callbacks, counters)"
OPEN_CLIP_ACT = "gelu"  # of Stable Diffusion 2.x; that of 1.x is quick_gelu
FOLDER, DICTIONARY = "folder", "dictionary"  # kinds of sources beside those of files


@dataclass(frozen=True)
class Weights:
    """The tensors of one source under the names of a whole model, lazy where they can be mapped.

    dropped: reason -> how many were left out for it; averaged: how many of `state` are moving averages.
    """

    label: str
    state: dict[str, Values]
    dropped: Counter[str]
    averaged: int  # 0 where the weights themselves were taken


@dataclass(frozen=True)
class Checkpoint:
    """One source of weights. label: what messages call it; path: None for a dictionary.

    header: its names are the source's own, those of a folder behind the prefix of their part. settings: of a
    folder, what its parts say of themselves, by entry of COMPONENTS, and "scheduler".
    """

    label: str
    path: Path | None  # where it lies, for what must be opened once more, such as by safetensors
    header: Header
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _read: Callable[[], dict[str, Values]] = field(default=dict, repr=False)

    @property
    def component(self) -> str | None:
        """The entry of COMPONENTS that a file under diffusers' names holds; None for any other source."""
        return detect_component(self.header.tensors)

    @property
    def parts(self) -> set[str]:
        """Which parts of a whole model it holds, by their prefix."""
        lacks = missing_prefix(self.header.tensors)
        return {
            part for part in PART_LABELS if any((lacks + n).startswith(part) for n in self.header.tensors)
        }

    @property
    def is_quantized(self) -> bool:
        """Whether `python -m quantize` wrote it."""
        from quantize.files.write import METADATA_KEY

        return METADATA_KEY in self.header.metadata

    @property
    def pruning(self) -> Record | None:
        """How it was pruned and from what; None where it says nothing.

        Raises ValueError in one sentence for a newer format or nonsense.
        """
        from quantize.prune.record import METADATA_KEY, Record

        text = self.header.metadata.get(METADATA_KEY)
        return None if text is None else Record.from_json(text, self.label)

    def tensors(self) -> dict[str, Values]:
        """All of it under the names of `header`, lazy where it can be mapped: never written over in place.

        Raises ValueError for a file without tensors, or that asks for what weights never need.
        """
        _check_not_empty(self.label, self.header)
        return self._read()

    def weights(self, *, use_ema: bool = False) -> Weights:
        """All of it under the names of a whole model; use_ema: moving averages in their weights' place.

        Errors as `tensors`, and ValueError for a foreign format, such as a LoRA.
        """
        tensors = self.tensors()
        try:
            state, dropped, averaged = normalize_names(tensors, use_ema=use_ema)
        except ValueError as error:
            raise ValueError(f"{self.label} cannot be loaded: {error}") from None
        if self.header.others:
            dropped[TRAINER_STATE] += len(self.header.others)
        return Weights(self.label, state, dropped, averaged)


Source = str | Path | Mapping[str, "Tensor"] | Checkpoint


def open_checkpoint(source: Source, label: str = "the dictionary") -> Checkpoint:
    """A file, a folder of diffusers or a dictionary called `label`; what is open already passes as it is.

    Raises FileNotFoundError, or ValueError in one sentence for what is no weights, damaged or hostile.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return _from_dictionary(dict(source), label)
    path = Path(source)
    if components := find_components(path):
        return _from_folder(path, components)
    header = read_header(path)
    return Checkpoint(str(source), path, header, _read=partial(_open_tensors, path, header))


def _open_tensors(path: Path, header: Header) -> dict[str, Values]:
    from checkpoints.files.lazy import open_tensors  # brings torch, which takes seconds to import

    return open_tensors(path, header)


def _from_dictionary(tensors: dict[str, Values], label: str) -> Checkpoint:
    headers = {
        name: TensorHeader(str(one.dtype), tuple(one.shape), one.nbytes) for name, one in tensors.items()
    }
    size = sum(one.nbytes for one in headers.values())
    return Checkpoint(label, None, Header(DICTIONARY, size, headers), _read=lambda: dict(tensors))


def _from_folder(folder: Path, components: Mapping[str, Component]) -> Checkpoint:
    tensors: dict[str, TensorHeader] = {}
    headers: dict[Path, Header] = {}
    for part, component in components.items():
        own: dict[str, TensorHeader] = {}
        for file in component.files:
            headers[file] = read_header(file)
            _check_not_empty(file, headers[file])
            own |= headers[file].tensors
        check_component(component, own)
        tensors |= {COMPONENTS[part].prefix + name: one for name, one in own.items()}

    def read() -> dict[str, Values]:
        state: dict[str, Values] = {}
        for part, component in components.items():
            own: dict[str, Values] = {}
            for file in component.files:
                own |= _open_tensors(file, headers[file])  # shards have no name twice
            act = component.config.get("hidden_act")  # tells the families apart where widths are small
            state |= to_original(own, part, open_clip=None if act is None else act == OPEN_CLIP_ACT)
        return state

    settings = {part: component.config for part, component in components.items()}
    settings |= {"scheduler": read_settings(folder / SCHEDULER)}
    header = Header(FOLDER, sum(one.size for one in headers.values()), tensors)
    return Checkpoint(str(folder), folder, header, settings, read)


def _check_not_empty(label: object, header: Header) -> None:
    if not header.tensors and header.kind != DICTIONARY:
        refuse_foreign(label, header.nested)
        raise ValueError(f"{label} holds no tensors, only {quote(header.nested) or 'nothing'}")
