"""PyTorch's own files (.ckpt, .pth, .pt, .bin) as far as their pickle tells: shapes, not numbers.

Today's format is a zip archive with one pickle and one member for each tensor's data, of which only the
directory is read. Before torch 1.6 it was a row of pickles followed by the data. Both are followed by
`checkpoints.files.pickle_machine`, so that nothing of them is run; sizes are held against the file before
they are believed.
"""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from checkpoints.files.kinds import kind_of, printable
from checkpoints.files.pickle_machine import Walk, walk

MAX_PICKLE_BYTES = 1 << 24  # the pickle of a full SD1.5 training checkpoint has 1 MB
MAX_INFLATION = 16  # numbers pack to more than half their size, unless nearly all of them are zero
SMALL_BYTES = 1 << 26  # whatever a file this small unpacked does, it cannot fill the memory
LEGACY_PICKLES = 5  # magic number, protocol, system, the saved object, keys of its data
LEGACY_SAVED = 3  # which of them is the saved object
LEGACY_COUNT_BYTES = 8  # before the data of each storage: how many elements


@dataclass(frozen=True)
class PickleFile:
    """What a file of torch.save describes. names: all that its pickle asks for, dotted."""

    saved: Any
    names: frozenset[str]


def read_pickle_file(path: Path) -> PickleFile:
    """The object saved in the PyTorch file `path` with `checkpoints.files.pickle_machine.Pickled` for each
    tensor.

    Raises ValueError in one sentence for a file that is damaged, hostile, or another kind of zip archive.
    """
    return _read_legacy(path) if kind_of(path) == "legacy" else _read_zip(path)


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside with the bytes of `path` leaves as one ValueError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        reason = _reason(error)
        raise ValueError(f"{path} is not a plain weights file, nothing of it was run: {reason}") from None
    except Exception as error:
        # Damaged bytes surface in torch and pickle as almost any exception, depending on where sense ends;
        # EINVAL is a place in the file that cannot be.
        of_the_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if of_the_system or (isinstance(error, ValueError) and str(error).startswith(str(path))):
            raise
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {_reason(error)}") from None


def _read_zip(path: Path) -> PickleFile:
    with one_sentence(path), _opened(path) as archive:
        members = archive.infolist()
        _check_members(path, members)
        pickled = _the_pickle(path, members)
        with archive.open(pickled) as file:
            followed = walk(BytesIO(file.read(MAX_PICKLE_BYTES)))
        _check_data(path, followed, pickled.filename, {one.filename: one.file_size for one in members})
    return PickleFile(followed.saved, followed.names)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is damaged or cut short, fetch it again: the end of the zip archive is gone"
        ) from None


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    name, count = Counter(one.filename for one in members).most_common(1)[0] if members else ("", 0)
    if count > 1:
        raise ValueError(f"{path} has two members called {printable(name)}: damaged or hostile")
    unpacked = sum(one.file_size for one in members)
    if unpacked > max(SMALL_BYTES, MAX_INFLATION * path.stat().st_size):
        raise ValueError(f"{path} would unpack to {unpacked / 2**30:.1f} GiB: refused as a zip bomb")


def _the_pickle(path: Path, members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    names = [one.filename for one in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path} is a TorchScript program, not weights: save its state_dict() and use that file"
        )
    pickles = [one for one in members if one.filename.endswith("/data.pkl")]
    if not pickles:
        inside = ", ".join(map(printable, names[:3])) or "nothing"
        raise ValueError(
            f"{path} is a zip archive without PyTorch weights, it holds {inside}; "
            "if the weights are packed inside, unpack them first"
        )
    if len(pickles) > 1:
        raise ValueError(f"{path} holds {len(pickles)} saved objects: unpack it and name one of them")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError(
            f"{path} has a pickle of {pickles[0].file_size} bytes, which weights never need: refused"
        )
    return pickles[0]


def _check_data(path: Path, followed: Walk, pickled: str, sizes: dict[str, int]) -> None:
    folder = pickled.removesuffix("data.pkl")
    for storage in followed.storages:
        found = sizes.get(f"{folder}data/{storage.key}")
        if found != storage.nbytes:
            got = "is missing" if found is None else f"has {found} bytes instead of {storage.nbytes}"
            raise ValueError(f"{path} is damaged, fetch it again: its data {printable(storage.key)} {got}")


def _read_legacy(path: Path) -> PickleFile:
    with one_sentence(path), path.open("rb") as file:
        limited = _Limited(file)
        walks = [walk(limited) for _ in range(LEGACY_PICKLES)]
        followed = walks[LEGACY_SAVED]
        needed = sum(LEGACY_COUNT_BYTES + storage.nbytes for storage in followed.storages)
        present = path.stat().st_size - file.tell()
        if present < needed:
            raise ValueError(
                f"{path} is damaged or cut short, fetch it again: {needed - present} bytes of data are gone"
            )
    return PickleFile(followed.saved, frozenset().union(*(one.names for one in walks)))


class _Limited:
    """A file that ends after MAX_PICKLE_BYTES: a pickle in front of gigabytes of data must end before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        return self._spent(self._file.read(min(count, self._left)))

    def readline(self) -> bytes:
        return self._spent(self._file.readline(self._left))

    def _spent(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def _reason(error: Exception) -> str:
    """The line of the message that is about the file; torch also explains how to switch its safety off."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    lines = (line.strip() for line in text.splitlines())
    return printable(next((line for line in lines if line and "eights" not in line), type(error).__name__))
