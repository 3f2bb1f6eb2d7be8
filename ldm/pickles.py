"""PyTorch's own files (.ckpt, .pth, .pt, .bin) opened without running anything that they ask for.

`torch.load(weights_only=True)` refuses training checkpoints, because they pickle callbacks, numpy scalars and
settings beside the weights. Here the names of known libraries are bound to `Inert`, a class that swallows
whatever it is given; every other name, and so every hostile file, is refused. Zip files are memory mapped;
the format from before torch 1.6 cannot be.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Libraries whose objects training checkpoints carry. None of their code runs: here they mean `Inert`.
LIBRARIES = """
    pytorch_lightning lightning lightning_fabric lightning_utilities torchmetrics torch numpy omegaconf fsspec
    pathlib collections datetime typing enum argparse ldm cldm
"""
KNOWN_LIBRARIES = frozenset(LIBRARIES.split())
PLAIN_TYPES = "dict list tuple set int float complex bool str bytearray object slice"
KNOWN_NAMES = frozenset({"_codecs.encode"} | {f"builtins.{name}" for name in PLAIN_TYPES.split()})
# Pickled as "make one, then set its items", which torch allows on plain dictionaries only.
DICTIONARIES = {
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}
LEGACY_PICKLES = 4  # what a file from before torch 1.6 starts with: magic, protocol, system, the saved object


class Inert:
    """Stands for any pickled object but a tensor: takes every argument and state, keeps and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        """An empty object."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class PlainDict:
    """Stands for a subclass of dict: making one gives an ordinary dictionary."""

    def __new__(cls, *_args: Any) -> dict:
        """An empty dictionary."""
        return {}


def load_pickle(path: Path) -> Any:
    """The object saved in the PyTorch file `path`: tensors on the CPU, other objects replaced by `Inert`.

    Tensors of a zip file are mapped from it, copy on write: memory fills only as they are read, so the file
    must not be overwritten in place while they live. Raises ValueError for a file that is cut short, that is
    another kind of zip archive, or that asks for names outside the known libraries.
    """
    zipped = _is_torch_zip(path)
    with _one_sentence(path):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else _legacy_names(path)
    bound = [(PlainDict if name in DICTIONARIES else Inert, name) for name in _allowed(names, path)]
    with _one_sentence(path), torch.serialization.safe_globals(bound):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))


def is_mappable(path: Path) -> bool:
    """Whether tensors can be mapped from this file: from a zip archive with uncompressed members."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _is_torch_zip(path: Path) -> bool:
    """Whether `path` is in today's format; raises ValueError for a broken or another kind of zip archive."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is damaged or cut short, fetch it again: the end of the zip archive is gone"
        )
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if not any(name.endswith("/data.pkl") for name in members):
        inside = ", ".join(members[:3]) or "nothing"
        raise ValueError(
            f"{path} is a zip archive without PyTorch weights, it holds {inside}; "
            "if the weights are packed inside, unpack them first"
        )
    if any(name.endswith("/constants.pkl") for name in members):
        raise ValueError(
            f"{path} is a TorchScript program, not weights: save its state_dict() and use that file"
        )
    return True


def _legacy_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        operations = [op for _ in range(LEGACY_PICKLES) for op in pickletools.genops(file)]
    names = {tuple(arg.split(" ", 1)) for opcode, arg, _ in operations if opcode.name == "GLOBAL"}
    # The old pickle protocol writes Python 2's names; torch looks them up under today's.
    renamed = (NAME_MAPPING.get(pair, (IMPORT_MAPPING.get(pair[0], pair[0]), pair[1])) for pair in names)
    return [".".join(pair) for pair in renamed]


def _allowed(names: list[str], path: Path) -> list[str]:
    for name in sorted(names):
        if name.split(".")[0] not in KNOWN_LIBRARIES and name not in KNOWN_NAMES:
            raise ValueError(
                f"{path} asks for {name}, which weights never need: refused, nothing of it was run; "
                "take a .safetensors file or another source"
            )
    return names


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, OSError):
        raise
    except pickle.UnpicklingError as error:
        reason = _reason(error)
        raise ValueError(f"{path} is not a plain weights file, nothing of it was run: {reason}") from None
    except Exception as error:
        # Damaged bytes surface in torch and pickle as almost any exception, depending on where sense ends.
        raise ValueError(f"{path} is damaged or cut short, fetch it again: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The line of torch's message that is about the file; the rest explains how to switch the safety off."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and "eights" not in line), type(error).__name__)
