"""PyTorch's own files (.ckpt, .pth, .pt, .bin): described without running or reading them, loaded by torch.

Today's format is a zip archive with one pickle and one member for each tensor's data; before torch 1.6 it was
a row of pickles followed by the data, which cannot be mapped. `torch.load(weights_only=True)` cannot list the
tensors of old files, takes memory for whatever those claim, and refuses training checkpoints, because they
pickle callbacks, numpy scalars and settings beside the weights. So a file is described first
(`checkpoints.files.unpickler`) and its sizes held against what is there; names of known libraries are bound
to `OpaqueObject`, and torch loads it with its own guard still up. All else, and so every hostile file, is
refused.
"""

from __future__ import annotations

import errno
import pickle
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from checkpoints.files.unpickler import DICTIONARIES, PARAMETER_MAKERS, TENSOR_MAKERS, DescribingUnpickler
from common.shell import printable

MAX_PICKLE_BYTES = 1 << 24  # the pickle of a full SD1.5 training checkpoint has 1 MB
MAX_INFLATION = 16  # numbers pack to more than half their size, unless nearly all of them are zero
SMALL_BYTES = 1 << 26  # whatever a file this small unpacked does, it cannot fill the memory
LEGACY_PICKLES = 5  # magic number, protocol, system, the saved object, keys of its data
LEGACY_SAVED = 3  # which of them is the saved object
LEGACY_COUNT_BYTES = 8  # before the data of each storage: how many elements
# Libraries whose objects training checkpoints carry. None of their code runs: here they mean `OpaqueObject`.
KNOWN_LIBRARIES = """
    pytorch_lightning lightning lightning_fabric lightning_utilities torchmetrics torch numpy omegaconf fsspec
    pathlib collections datetime typing enum argparse ldm cldm
"""
PLAIN_TYPES = "dict list tuple set int float complex bool str bytearray object slice"
KNOWN_NAMES = {"_codecs.encode", *(f"builtins.{name}" for name in PLAIN_TYPES.split())}
# What torch makes for real, whatever a name is bound to: beside plain tensors, nothing that weights need.
MADE_BY_TORCH = re.compile(r"torch\.(_utils|_tensor|nested|distributed)\.|torch\.(\w+\.)*\w*Tensor$")
_BINDING = threading.Lock()  # torch keeps one list of bound names for the whole process


class OpaqueObject:
    """Stands for any pickled object but a tensor: takes every argument and state, keeps and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> OpaqueObject:
        """An empty object."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class PlainDict:
    """Stands for a subclass of dict: making one gives an ordinary dictionary."""

    def __new__(cls, *_args: Any) -> dict:
        """An empty dictionary."""
        return {}


@dataclass(frozen=True)
class PickleFile:
    """What a file of torch.save describes.

    saved: with a `DescribedTensor` for each tensor; names: all that it asks for, dotted; mapped: whether its
    tensors can be mapped, as from a zip archive with uncompressed members.
    """

    path: Path
    saved: Any  # dictionaries of the pickle, a stand-in for all else
    names: frozenset[str]
    mapped: bool

    def load(self) -> Any:
        """The object saved in it: tensors on the CPU, all others replaced by `OpaqueObject`.

        Mapped tensors are copied on write. Raises ValueError where it asks for names of unknown libraries.
        """
        import torch

        bound = [(PlainDict if name in DICTIONARIES else OpaqueObject, name) for name in self._allowed()]
        with one_sentence(self.path), _BINDING, torch.serialization.safe_globals(bound):
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self.mapped)

    def _allowed(self) -> list[str]:
        for name in sorted(self.names):
            makes_others = MADE_BY_TORCH.match(name) and name not in TENSOR_MAKERS | PARAMETER_MAKERS
            known = name.split(".")[0] in KNOWN_LIBRARIES.split() or name in KNOWN_NAMES
            if makes_others or not known:
                raise ValueError(
                    f"{self.path} asks for {printable(name)}, which weights never need: refused, nothing of "
                    "it was run; take a .safetensors file or another source"
                )
        return sorted(self.names)


def describe_pickle(path: Path, *, legacy: bool) -> PickleFile:
    """What the PyTorch file `path` holds; legacy: as written before torch 1.6.

    Raises ValueError in one sentence for a file that is damaged, hostile, or another kind of zip archive.
    """
    with one_sentence(path):
        return _describe_legacy(path) if legacy else _describe_zip(path)


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside with the bytes of `path` leaves as one ValueError that names the file."""
    try:
        yield
    except MemoryError:  # for the caller: memory ran out, the file may be whole
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


def _describe_zip(path: Path) -> PickleFile:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(path, members)  # before a byte is unpacked
        pickled = _the_pickle(path, members)
        with archive.open(pickled) as file:
            unpickler = DescribingUnpickler(BytesIO(file.read(MAX_PICKLE_BYTES)))
            saved = unpickler.load()
    sizes = {one.filename: one.file_size for one in members}  # unpacked, as the directory of the archive says
    folder = pickled.filename.removesuffix("data.pkl")
    for storage in unpickler.storages.values():
        found = sizes.get(f"{folder}data/{storage.key}")
        if found != storage.nbytes:
            got = "is missing" if found is None else f"has {found} bytes instead of {storage.nbytes}"
            raise ValueError(f"{path} is damaged, fetch it again: its data {printable(storage.key)} {got}")
    mapped = all(one.compress_type == zipfile.ZIP_STORED for one in members)
    return PickleFile(path, saved, frozenset(unpickler.names), mapped)


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


def _describe_legacy(path: Path) -> PickleFile:
    with path.open("rb") as file:
        head = BytesIO(file.read(MAX_PICKLE_BYTES))  # in front of gigabytes of data
    unpicklers = [DescribingUnpickler(head) for _ in range(LEGACY_PICKLES)]
    saved = [one.load() for one in unpicklers][LEGACY_SAVED]
    storages = unpicklers[LEGACY_SAVED].storages.values()
    needed = sum(LEGACY_COUNT_BYTES + storage.nbytes for storage in storages)
    present = path.stat().st_size - head.tell()
    if present < needed:
        raise ValueError(
            f"{path} is damaged or cut short, fetch it again: {needed - present} bytes of data are gone"
        )
    names = frozenset().union(*(one.names for one in unpicklers))
    return PickleFile(path, saved, names, mapped=False)


def _reason(error: Exception) -> str:
    """The line of the message that is about the file; torch also explains how to switch its safety off."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    lines = (line.strip() for line in text.splitlines())
    return printable(next((line for line in lines if line and "eights" not in line), type(error).__name__))
