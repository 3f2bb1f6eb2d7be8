"""Quantized files -> models that compute with their codes; nothing is decoded on the way.

Tensors of some size are mapped from the file a few at a time, so that pages leave memory with them: a backend
that packs layers' codes into its own form does not end up with both.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.safetensors_header import LENGTH_FORMAT, STORED_NAMES
from quantize.files.write import METADATA_KEY, Content
from quantize.layers import QuantEmbedding
from quantize.model import bind, check_schemes, with_empty_layers
from quantize.timesteps import follow_timesteps

MAPPED_BYTES = 1 << 16  # below, a mapping of whole pages costs more than a copy
PIECE_BYTES = 1 << 24  # of the file in a mapping: each holds a file descriptor, of which 1,024 are usual
DTYPES = {name: dtype for dtype, name in STORED_NAMES.items()}
PLAIN_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
SHOWN = 3  # names in an error
LENGTH_BYTES = struct.calcsize(LENGTH_FORMAT)  # in front of the header


def read_content(path: str | Path) -> Content:
    """What a quantized file says of itself.

    Raises FileNotFoundError, or ValueError in one sentence for a file that is cut short, is not quantized or
    is from a newer version.
    """
    text = _metadata(path).get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} is not quantized: load it as weights, or quantize it first")
    return Content.from_json(text, path)


def load_quantized(
    model: nn.Module,
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Content:
    """Give `model`, which may have no memory, the layers and numbers of a quantized file, ready to run.

    backend: None for the best of the device. dtype: of what stayed float, None for the model's own; codes,
    scales and the model's constants keep theirs. The file must not be overwritten in place while the model
    lives. Raises as `read_content`, and ValueError in one sentence where the file is for another model or
    the device lacks something.
    """
    content = read_content(path)
    content.plan.check(model, str(path))  # before the first byte of weights is read
    if backend is None:
        check_schemes(content.plan, torch.device(device))
    tensors = _read_tensors(Path(path))
    counts = {
        name: len(tensors[key]) for name in content.plan.layers if (key := f"{name}.in_scale") in tensors
    }
    with_empty_layers(model, content.plan, counts)
    _check_fit(model, tensors, path)
    _assign(model, tensors, dtype)
    if torch.device(device).type != "cpu":  # where all of it has been read to
        model.to(device)
    bind(model, backend)
    if content.schedule:
        for name, argument in content.schedule.modules.items():
            follow_timesteps(_submodule(model, name, path), content.schedule.groups, argument)
    return content


def _metadata(path: str | Path) -> Mapping[str, str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no safetensors file, damaged or cut short: {reason}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file whose header `_metadata` has held against its size."""
    with path.open("rb") as file:
        length = struct.unpack(LENGTH_FORMAT, file.read(LENGTH_BYTES))[0]
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)  # text, not a tensor
        size = file.seek(0, os.SEEK_END)
        # Copy on write, all of them: torch wants memory that may be written to.
        whole = torch.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), dtype=torch.uint8)
        tensors, piece, first, last = {}, b"", 0, 0
        for name, entry in header.items():
            if (dtype := DTYPES.get(entry["dtype"])) is None:
                raise ValueError(f"{path} holds {name} in {entry['dtype']}, which this program never writes")
            start, end = (LENGTH_BYTES + length + offset for offset in entry["data_offsets"])
            if end - start < MAPPED_BYTES:
                values = whole[start:end].clone()
            else:
                if not first <= start <= end <= last:
                    first = start - start % mmap.ALLOCATIONGRANULARITY
                    last = min(size, max(end, first + PIECE_BYTES))
                    piece = mmap.mmap(file.fileno(), last - first, access=mmap.ACCESS_COPY, offset=first)
                values = torch.frombuffer(piece, dtype=torch.uint8, count=end - start, offset=start - first)
            tensors[name] = values.view(dtype).view(entry["shape"])
    return tensors


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    wanted = model.state_dict()
    problems = {
        "lacks": sorted(wanted.keys() - tensors.keys()),
        "has, and the model not,": sorted(tensors.keys() - wanted.keys()),
        "has in another shape": [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape],
        "has in another type": [n for n in wanted if n in tensors and not _same_kind(wanted[n], tensors[n])],
    }
    for what, names in problems.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ValueError(f"{path} {what} {', '.join(names[:SHOWN])}{more}: make it again")


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype or {one.dtype, other.dtype} <= PLAIN_FLOATS


def _assign(model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    modules = dict(model.named_modules())
    for layer in modules.values():
        if isinstance(layer, QuantEmbedding):
            layer.out_dtype = dtype or torch.float32
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if (own := module._parameters.get(leaf)) is not None:
            wide = (dtype or own.dtype) if own.is_floating_point() else own.dtype
            module._parameters[leaf] = nn.Parameter(tensor.to(wide), requires_grad=False)
        else:
            module._buffers[leaf] = tensor.to(module._buffers[leaf].dtype)


def _submodule(model: nn.Module, name: str, path: str | Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{path} follows the timesteps of {name}, which the model does not have") from None
