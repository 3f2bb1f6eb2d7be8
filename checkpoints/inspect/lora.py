"""What a LoRA file changes, how strongly and for which model: from its header and its few alphas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from safetensors import safe_open

from checkpoints.checkpoint import Checkpoint
from checkpoints.files.headers import TensorHeader
from checkpoints.inspect.model import FAMILIES, FORMATS, TEXT, UNET, Inspection, PartSummary
from checkpoints.lora.alpha import PEFT_PREFIX, stored_alphas
from checkpoints.lora.names import TEXT_READERS, split_name

TEXT_MARKER = ("lora_te", "text_encoder", "text_model", f"{PEFT_PREFIX}text_model")
UNKNOWN = "unknown use"
SAID = {  # entry of the metadata -> how a note begins
    "ss_base_model_version": "trained on",
    "ss_sd_model_name": "trained from",
    "modelspec.architecture": "architecture",
    "modelspec.title": "titled",
}


def describe_lora(checkpoint: Checkpoint) -> Inspection:
    """What a LoRA file is."""
    header = checkpoint.header
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
        path=checkpoint.label,
        what=f"LoRA{f' for {family}' if family else ''}, in {_naming(modules)} names",
        format=FORMATS[header.kind],
        size=header.size,
        family=family,
        parts=tuple(PartSummary.of(f"for the {part}", tensors) for part, tensors in parts.items() if tensors),
        missing=("the model that it changes: merge it into one at load with --lora FILE:WEIGHT",),
        notes=(f"changes {counts}; rank {_range(ranks)}, alpha {_alpha(checkpoint, modules)}", *said),
    )


def _naming(modules: Iterable[str]) -> str:
    one = next(iter(modules))
    if one.startswith("lora_"):
        return "kohya's"
    return "PEFT's" if one.startswith(PEFT_PREFIX) else "diffusers'"


def _range(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _alpha(checkpoint: Checkpoint, modules: Iterable[str]) -> str:
    header = checkpoint.header
    own = [name for name, one in header.tensors.items() if name.endswith(".alpha") and one.count == 1]
    if own:
        return _range(_numbers(checkpoint, own))
    try:
        alphas = stored_alphas(checkpoint.path, header.metadata, modules)
    except ValueError as error:
        return f"unknown: {error}"
    found = {alphas(module) for module in modules} - {None}
    return _range(found) if found else "not stored, which means the rank"


def _numbers(checkpoint: Checkpoint, names: Iterable[str]) -> list[float]:
    """The values of tensors of one number each, a few bytes of the file."""
    with suppress(TypeError):  # numpy has no bfloat16
        if checkpoint.header.kind == "safetensors":
            with safe_open(checkpoint.path, framework="numpy") as file:
                return [file.get_tensor(name).item() for name in names]
    from checkpoints.files.lazy import read  # brings torch, which takes seconds to import

    tensors = checkpoint.tensors()
    return [read(tensors[name]).item() for name in names]
