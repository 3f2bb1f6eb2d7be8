"""What a file or folder is, as far as its header tells: family, parts, rank of a LoRA, what is missing.

What a file does not store is not guessed: a convention is called one. Only some LoRAs' alphas need torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from safetensors import safe_open

from checkpoints.checkpoint import FOLDER, Checkpoint
from checkpoints.diffusers.folder import SCHEDULER
from checkpoints.files.headers import TensorHeader
from checkpoints.lora.names import PEFT_PREFIX, TEXT_READERS, split_name, stored_alphas
from checkpoints.names.original import EMA_PREFIX, PART_LABELS, context_width, missing_prefix
from checkpoints.names.recognize import control_kind
from common.shell import quote

Parts = Mapping[str, Mapping[str, TensorHeader]]  # what messages call a part -> its tensors, without prefix

FORMATS = {
    "safetensors": "safetensors", "zip": "torch zip", "legacy": "torch before 1.6", FOLDER: "diffusers folder"
}  # fmt: skip
DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
SD1, SD2 = "Stable Diffusion 1.x", "Stable Diffusion 2.x"
FAMILIES = {768: SD1, 1024: SD2, 2048: "SDXL"}  # by the width of the text
PUBLISHED_CHANNELS = 320  # of the first block of all their U-Nets
TINY = (64, 64)  # width of the text and channels in models/tiny.yaml
EMA, SCHEDULE, UNKNOWN = "moving averages", "schedule", "other tensors"
UNET, VAE, TEXT, CONTROL = PART_LABELS.values()
BASE = [UNET, VAE, TEXT]  # what a picture needs beside a branch
INPUTS = {  # channels that a U-Net takes -> what they are for
    5: "a depth map too (depth-to-image)",
    8: "a second picture too (InstructPix2Pix)",
    9: "a mask and a picture too (inpainting)",
}
FIRST_CONVOLUTION = ("input_blocks.0.0.weight", "conv_in.weight")  # [c, inputs, 3, 3], ours and diffusers'
TOKENS = "token_embedding.weight"  # [tokens, d]: the width of a text encoder alone
NOISE, VELOCITY = "noise (epsilon)", "velocity (v-prediction)"
PREDICTIONS = {"v": VELOCITY, "v_prediction": VELOCITY, "epsilon": NOISE}
LORA_TEXT = ("lora_te", "text_encoder", "text_model", f"{PEFT_PREFIX}text_model")  # beginnings of its names
LORA_METADATA = {  # entry -> how a note begins
    "ss_base_model_version": "trained on",
    "ss_sd_model_name": "trained from",
    "modelspec.architecture": "architecture",
    "modelspec.title": "titled",
}


@dataclass(frozen=True)
class PartSummary:
    """One part of a model: parameters are floating point numbers; dtypes as in DTYPES, else lower case."""

    name: str
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a file or folder is. size: on the disk, bytes; control: what its name says it steers by.

    beside: entries that are no weights -> bytes of tensors in them; missing: what a picture needs besides.
    """

    path: str
    what: str
    format: str
    size: int
    family: str | None = None
    parts: tuple[PartSummary, ...] = ()
    predicts: str | None = None
    control: str | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe(
    checkpoint: Checkpoint, what: str, parts: Mapping[str, Iterable[TensorHeader]], **more: Any
) -> Inspection:
    """An `Inspection` with what any form has; more: its other fields."""
    header = checkpoint.header
    summaries = tuple(_summary(name, list(tensors)) for name, tensors in parts.items() if tensors)
    return Inspection(checkpoint.label, what, FORMATS[header.kind], header.size, parts=summaries, **more)


def describe_model(checkpoint: Checkpoint) -> Inspection:
    """What a model is, opened in any form."""
    named = _named_parts(checkpoint)
    found = [part for part in PART_LABELS.values() if part in named]
    inside = named.get(UNET) or named.get(CONTROL) or {}
    # that of the U-Net, or of its copy in the control branch
    first = next((inside[name].shape for name in FIRST_CONVOLUTION if name in inside), None)
    family = _family(named, first)
    what = _kind(found) + (f" of {family}" if family else "")
    return describe(
        checkpoint,
        what + (", in diffusers' names" if checkpoint.component else ""),
        {name: tensors.values() for name, tensors in named.items()},
        family=family,
        predicts=_prediction(checkpoint, family) if UNET in named else None,
        control=control_kind(checkpoint.path) if CONTROL in named else None,
        beside=checkpoint.header.others,
        missing=_missing(found),
        notes=_notes(named, first),
    )


def _summary(name: str, tensors: list[TensorHeader]) -> PartSummary:
    floats = [one for one in tensors if one.dtype.startswith(("F", "BF"))]
    dtypes = {DTYPES.get(one.dtype, one.dtype.lower()) for one in floats or tensors}
    parameters, nbytes = sum(one.count for one in floats), sum(one.nbytes for one in tensors)
    return PartSummary(name, parameters, nbytes, tuple(sorted(dtypes)))


def _named_parts(checkpoint: Checkpoint) -> Parts:
    """First the parts of PART_LABELS, then the rest."""
    named: dict[str, dict[str, TensorHeader]] = {part: {} for part in (*PART_LABELS.values(), EMA, SCHEDULE)}
    prefix = missing_prefix(checkpoint.header.tensors)
    for name, tensor in checkpoint.header.tensors.items():
        full = prefix + name
        owner = next((one for one in PART_LABELS if full.startswith(one)), "")
        rest = EMA if name.startswith(EMA_PREFIX) else UNKNOWN if "." in name else SCHEDULE
        named.setdefault(PART_LABELS.get(owner, rest), {})[full.removeprefix(owner)] = tensor
    return {part: inside for part, inside in named.items() if inside}


def _kind(found: list[str]) -> str:
    if not found:
        return "no model that is known here"
    if found == list(PART_LABELS.values()):
        return "base model with a control branch"
    return "base model" if found == BASE else f"{' and '.join(found)} alone"


def _family(named: Parts, first: tuple[int, ...] | None) -> str | None:
    """Whose text it reads or writes; None where nothing tells, as of an autoencoder."""
    shapes = {name: one.shape for part in named.values() for name, one in part.items()}
    text = named.get(TEXT, {})
    tokens = (one.shape[-1] for name, one in text.items() if one.shape and name.endswith(TOKENS))
    width = context_width(shapes) or next(tokens, None)
    if width is None:
        return None
    if width in FAMILIES and (first is None or first[0] == PUBLISHED_CHANNELS):
        return FAMILIES[width]
    if first and (width, first[0]) == TINY:
        return "the tiny model of this project"
    return f"a size of its own (text of width {width}{f', {first[0]} channels' if first else ''})"


def _prediction(checkpoint: Checkpoint, family: str | None) -> str:
    header = checkpoint.header
    if said := checkpoint.settings.get("scheduler", {}).get("prediction_type"):
        return f"{PREDICTIONS.get(str(said), said)}, says {SCHEDULER.as_posix()}"
    if stored := header.metadata.get("modelspec.prediction_type"):
        return f"{PREDICTIONS.get(stored, stored)}, says its metadata"
    if header.metadata.get("ss_v_parameterization") == "True" or "v_pred" in header.tensors:
        return f"{VELOCITY}, says a mark in it"
    if family == SD1:
        return f"not stored; by convention {SD1} predicts {NOISE}"
    if family == SD2:
        hint = "; this name says 768" if "768" in checkpoint.path.name else ""
        return f"not stored; by convention 2.x for 512 pixels predicts {NOISE}, for 768 {VELOCITY}{hint}"
    return "not stored; the yaml of the model says it"


def _missing(found: list[str]) -> tuple[str, ...]:
    base = [part for part in BASE if part not in found]
    lines = [f"{', '.join(base)}: give a base model before it"] if base else []
    if CONTROL not in found:
        lines.append(f"{CONTROL}: give one behind it, such as control_v11p_sd15_canny.safetensors")
    return tuple(lines) if found else ()


def _notes(named: Parts, first: tuple[int, ...] | None) -> tuple[str, ...]:
    notes = []
    if first and first[1:2] and first[1] in INPUTS:
        notes.append(f"its U-Net takes {INPUTS[first[1]]}, which no model here does")
    if EMA in named:
        notes.append("use_ema=True loads its moving averages in place of the weights")
    if UNKNOWN in named:
        notes.append(f"names of no part that is known here: {quote(list(named[UNKNOWN]))}")
    return tuple(notes)


def describe_lora(checkpoint: Checkpoint) -> Inspection:
    """What a LoRA file changes, how strongly and for which model."""
    metadata = checkpoint.header.metadata
    parts: dict[str, list[TensorHeader]] = {f"for the {part}": [] for part in (UNET, TEXT)}
    ranks, layers = set(), Counter()
    modules, width = [], None
    for name, tensor in checkpoint.header.tensors.items():
        module, role = split_name(name) or (name, "")
        part = (TEXT if module.startswith(LORA_TEXT) else UNET) if role else "unknown use"
        parts.setdefault(f"for the {part}", []).append(tensor)
        modules.append(module)
        if role == "down" and len(tensor.shape) > 1:
            ranks.add(tensor.shape[0])
            layers[part] += 1
            width = tensor.shape[1] if module.endswith(TEXT_READERS) else width
    family = FAMILIES.get(width or 0)
    naming = "PEFT's" if modules[0].startswith(PEFT_PREFIX) else "diffusers'"
    naming = "kohya's" if modules[0].startswith("lora_") else naming
    counts = " and ".join(f"{layers[part]} weights of the {part}" for part in (UNET, TEXT) if layers[part])
    said = (f"{words} {metadata[key]}" for key, words in LORA_METADATA.items() if metadata.get(key))
    return describe(
        checkpoint,
        f"LoRA{f' for {family}' if family else ''}, in {naming} names",
        parts,
        family=family,
        missing=("the model that it changes: merge it into one at load with --lora FILE:WEIGHT",),
        notes=(f"changes {counts}; rank {_range(ranks)}, alpha {_alpha(checkpoint, modules)}", *said),
    )


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
