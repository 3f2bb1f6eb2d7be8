"""Where a conversion's result goes: what may be replaced, how it is written, what is said of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from checkpoints.diffusers.folder import CONFIG, INDEX
from checkpoints.diffusers.write import Write
from checkpoints.files.lazy import Values
from checkpoints.files.write import SUFFIXES, write_weights
from checkpoints.surgery import to_dtype
from common.atomic import MIB, atomic_write, check_space
from common.shell import quote
from ldm.util import DTYPES

State = Mapping[str, Values]
About = Callable[[State], Mapping[str, str]]
Fill = Callable[[Path, Mapping[str, State], Write], None]  # where, what, and how to write a file of weights


@dataclass(frozen=True)
class Target:
    """A file or folder to be written. force: over an older one; dtype: such as fp16, None as it is."""

    path: Path
    force: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class Result:
    """What was written: the path, tensors and bytes of weights, and sentences about what is not as it was."""

    path: Path
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.path}: {self.tensors} tensors, {self.nbytes / MIB:.1f} MiB"
        return "\n".join([size, *self.notes])


def check_file(target: Target, sources: Sequence[Path], *, only: Sequence[str] = SUFFIXES) -> None:
    """Raise ValueError unless one file of a suffix in `only` can be written without harm to `sources`."""
    if target.path.suffix not in only:
        raise ValueError(f"{target.path}: name a file that ends in {' or '.join(only)}")
    if target.path.is_dir():
        raise ValueError(f"{target.path} is a folder: name a file")
    _check(target, sources)


def check_folder(target: Target, sources: Sequence[Path]) -> None:
    """Raise ValueError unless a folder of diffusers can be written without harm to `sources` and others."""
    path = target.path
    if path.suffix in SUFFIXES or path.is_file():
        raise ValueError(f"{path}: the result is a folder, name it without a suffix")
    _check(target, sources)
    is_ours = any((path / name).is_file() for name in (INDEX, CONFIG))
    if path.is_dir() and any(path.iterdir()) and not is_ours:
        raise ValueError(f"{path} holds something other than a model of diffusers: name a new folder")


def write_file(target: Target, state: State, about: About) -> Result:
    """Write `state` in the dtype of the target as one file with the metadata that `about` tells of it."""
    cast, overflow = _cast(target, {"": state})
    with _bar(_size(cast)) as bar:
        write_weights(target.path, cast[""], metadata=about(state), on_bytes=bar.update)
    return _result(target, cast, overflow)


def write_folder(target: Target, parts: Mapping[str, State], about: About, fill: Fill) -> Result:
    """Have `fill` write a folder with `parts`; every file gets the metadata that `about` tells of it."""
    cast, overflow = _cast(target, parts)
    check_space(target.path, _size(cast))

    def write(path: Path, state: State) -> None:
        write_weights(path, state, metadata=about(state), on_bytes=bar.update)

    with _bar(_size(cast)) as bar, atomic_write(target.path) as folder:
        folder.mkdir()
        fill(folder, cast, write)
    return _result(target, cast, overflow)


def _bar(size: int) -> tqdm:
    return tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False, delay=1)


def _cast(target: Target, parts: Mapping[str, State]) -> tuple[dict[str, State], Counter[str]]:
    overflow: Counter[str] = Counter()
    if target.dtype is None:
        return dict(parts), overflow
    return {part: to_dtype(state, DTYPES[target.dtype], overflow) for part, state in parts.items()}, overflow


def _size(parts: Mapping[str, State]) -> int:
    return sum(tensor.nbytes for state in parts.values() for tensor in state.values())


def _result(target: Target, parts: Mapping[str, State], overflow: Counter[str]) -> Result:
    notes = ()
    if overflow:
        dtype, lost = str(DTYPES[target.dtype]).removeprefix("torch."), sum(overflow.values())
        where = f"{len(overflow)} tensors ({quote(list(overflow))})"
        notes = (f"{lost} values in {where} are too large for {dtype} and became infinite",)
    return Result(target.path, sum(map(len, parts.values())), _size(parts), notes)


def _check(target: Target, sources: Sequence[Path]) -> None:
    path = target.path
    for source in sources:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise ValueError(f"{path} is what goes in: name another file for what comes out")
        if path.resolve() in source.resolve().parents and path.is_dir():
            raise ValueError(f"{path} holds what goes in, {source.name}: name another folder")
    if path.exists() and not target.force:
        raise ValueError(f"{path} is there already: --force replaces it")
