"""What a LoRA file changes, how strongly and for which model: from its header and its few alphas."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from checkpoints.files.headers import Header, TensorHeader, read_safetensors_header
from checkpoints.files.kinds import SAFETENSORS_BRACE
from checkpoints.inspect.model import FAMILIES, TEXT, UNET, Inspection, PartSummary
from checkpoints.lora.alpha import PEFT_PREFIX, stored_alphas
from checkpoints.lora.names import TEXT_READERS, split_name

TEXT_MARKER = ("lora_te", "text_encoder", "text_model", f"{PEFT_PREFIX}text_model")
UNKNOWN = "unknown use"
NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q"}
SAID = {  # entry of the metadata -> how a note begins
    "ss_base_model_version": "trained on",
    "ss_sd_model_name": "trained from",
    "modelspec.architecture": "architecture",
    "modelspec.title": "titled",
}


def describe_lora(path: Path, header: Header, form: str) -> Inspection:
    """What the LoRA file at `path` with this header is."""
    parts: dict[str, list[TensorHeader]] = {UNET: [], TEXT: []}
    ranks: Counter[int] = Counter()
    layers: Counter[str] = Counter()
    modules, width = set(), None
    for name, tensor in header.tensors.items():
        module, role = split_name(name) or (name, "")
        part = (TEXT if module.startswith(TEXT_MARKER) else UNET) if role else UNKNOWN
        parts.setdefault(part, []).append(tensor)
        modules.add(module)
        if role == "down" and len(tensor.shape) > 1:
            ranks[tensor.shape[0]] += 1
            layers[part] += 1
            width = tensor.shape[1] if module.endswith(TEXT_READERS) else width
    family = FAMILIES.get(width or 0)
    counts = " and ".join(f"{count} weights of the {part}" for part in parts if (count := layers[part]))
    said = (f"{words} {header.metadata[key]}" for key, words in SAID.items() if header.metadata.get(key))
    return Inspection(
        path=str(path),
        what=f"LoRA{f' for {family}' if family else ''}, in {_naming(modules)} names",
        format=form,
        size=header.size,
        family=family,
        parts=tuple(PartSummary.of(f"for the {part}", tensors) for part, tensors in parts.items() if tensors),
        missing=("the model that it changes: merge it into one at load with --lora FILE:WEIGHT",),
        notes=(f"changes {counts}; rank {_range(ranks)}, alpha {_alpha(path, header, modules)}", *said),
    )


def _naming(modules: Iterable[str]) -> str:
    one = next(iter(modules))
    if one.startswith("lora_"):
        return "kohya's"
    return "PEFT's" if one.startswith(PEFT_PREFIX) else "diffusers'"


def _range(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _alpha(path: Path, header: Header, modules: Iterable[str]) -> str:
    own = {name: one for name, one in header.tensors.items() if name.endswith(".alpha")}
    if own and header.kind != "safetensors":
        return "stored, but only a safetensors header leads to it"
    if own:
        return _range(_numbers(path, own))
    try:
        alphas = stored_alphas(path, header.metadata, modules)
    except ValueError as error:
        return f"unknown: {error}"
    found = {alphas(module) for module in modules} - {None}
    return _range(found) if found else "not stored, which means the rank"


def _numbers(path: Path, tensors: Mapping[str, TensorHeader]) -> list[float]:
    """The values of tensors of one number each, a few bytes of the file."""
    entries = read_safetensors_header(path)
    values = []
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(SAFETENSORS_BRACE))
        for name, tensor in tensors.items():
            file.seek(SAFETENSORS_BRACE + length + entries[name]["data_offsets"][0])
            raw = file.read(tensor.nbytes)
            if tensor.dtype == "BF16":  # the upper half of a single precision number
                raw, tensor = b"\0\0" + raw, tensor._replace(dtype="F32")
            if tensor.dtype in NUMBERS and struct.calcsize(NUMBERS[tensor.dtype]) == len(raw):
                values += struct.unpack(NUMBERS[tensor.dtype], raw)
    return values or [float("nan")]
