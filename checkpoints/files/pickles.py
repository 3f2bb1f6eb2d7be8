"""PyTorch's own files (.ckpt, .pth, .pt, .bin) opened without running anything that they ask for.

`torch.load(weights_only=True)` refuses training checkpoints, because they pickle callbacks, numpy scalars and
settings beside the weights. Here every file is first followed on paper (`checkpoints.files.pickle_header`);
where the names that it asks for are harmless, those of known libraries are bound to `OpaqueObject`, which
swallows whatever it is given, and torch loads it with its own guard still up. All else, and so every hostile
file, is refused. Zip files are memory mapped; the format from before torch 1.6 cannot be.
"""

from __future__ import annotations

import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch

from checkpoints.files.kinds import printable
from checkpoints.files.pickle_header import one_sentence, read_pickle_file
from checkpoints.files.pickle_machine import DICTIONARIES, PARAMETER_MAKERS, TENSOR_MAKERS

# Libraries whose objects training checkpoints carry. None of their code runs: here they mean `OpaqueObject`.
LIBRARIES = """
    pytorch_lightning lightning lightning_fabric lightning_utilities torchmetrics torch numpy omegaconf fsspec
    pathlib collections datetime typing enum argparse ldm cldm
"""
KNOWN_LIBRARIES = frozenset(LIBRARIES.split())
PLAIN_TYPES = "dict list tuple set int float complex bool str bytearray object slice"
KNOWN_NAMES = frozenset({"_codecs.encode"} | {f"builtins.{name}" for name in PLAIN_TYPES.split()})
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


def load_pickle(path: Path) -> Any:
    """The object saved in the PyTorch file `path`: tensors on the CPU, others replaced by `OpaqueObject`.

    Tensors of a zip file are mapped from it, copy on write: memory fills only as they are read, so the file
    must not be overwritten in place while they live. Raises ValueError for a file that is cut short, that is
    another kind of zip archive, or that asks for names outside the known libraries.
    """
    described = read_pickle_file(path)
    bound = [
        (PlainDict if name in DICTIONARIES else OpaqueObject, name)
        for name in _allowed(described.names, path)
    ]
    with one_sentence(path), _BINDING, torch.serialization.safe_globals(bound):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))


def is_mappable(path: Path) -> bool:
    """Whether tensors can be mapped from this file: from a zip archive with uncompressed members."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _allowed(names: frozenset[str], path: Path) -> list[str]:
    for name in sorted(names):
        makes_others = MADE_BY_TORCH.match(name) and name not in TENSOR_MAKERS | PARAMETER_MAKERS
        known = name.split(".")[0] in KNOWN_LIBRARIES or name in KNOWN_NAMES
        if makes_others or not known:
            raise ValueError(
                f"{path} asks for {printable(name)}, which weights never need: refused, nothing of it was "
                "run; take a .safetensors file or another source"
            )
    return sorted(names)
