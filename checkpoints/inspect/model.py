"""What a model file is, as far as its names, shapes and sizes tell: family, parts, what is missing.

What a file does not store is not guessed: a convention is called one. torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from checkpoints.checkpoint import FOLDER, Checkpoint
from checkpoints.compatibility import context_width
from checkpoints.diffusers.folder import SCHEDULER
from checkpoints.files.headers import TensorHeader
from checkpoints.files.kinds import quote
from checkpoints.names.original import EMA_PREFIX, PART_LABELS
from checkpoints.names.recognize import control_kind

Tensors = Mapping[str, TensorHeader]

FORMATS = {
    "safetensors": "safetensors", "zip": "torch zip", "legacy": "torch before 1.6", FOLDER: "diffusers folder"
}  # fmt: skip
DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "SDXL",
}  # by the width of the text
SD1, SD2, _ = FAMILIES.values()
PUBLISHED_CHANNELS = 320  # of the first block of all their U-Nets
TINY = (64, 64)  # width of the text and channels in models/tiny.yaml
EMA = "moving averages"
SCHEDULE, UNKNOWN = "schedule", "other tensors"
UNET, VAE, TEXT, CONTROL = PART_LABELS.values()
BASE = [UNET, VAE, TEXT]
INPUTS = {  # channels that a U-Net takes -> what they are for
    5: "a depth map too (depth-to-image)",
    8: "a second picture too (InstructPix2Pix)",
    9: "a mask and a picture too (inpainting)",
}
FIRST_CONVOLUTION = ("input_blocks.0.0.weight", "conv_in.weight")
TOKENS = "token_embedding.weight"
NOISE, VELOCITY = "noise (epsilon)", "velocity (v-prediction)"
PREDICTIONS = {"v": VELOCITY, "v_prediction": VELOCITY, "epsilon": NOISE}


@dataclass(frozen=True)
class PartSummary:
    """One part of a model: parameters are floating point numbers; dtypes as in DTYPES, else lower case."""

    name: str
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, tensors: Iterable[TensorHeader]) -> PartSummary:
        """The sum of `tensors`."""
        tensors = list(tensors)
        floats = [one for one in tensors if one.dtype.startswith(("F", "BF"))]
        dtypes = {DTYPES.get(one.dtype, one.dtype.lower()) for one in floats or tensors}
        return cls(
            name, sum(one.count for one in floats), sum(one.nbytes for one in tensors), tuple(sorted(dtypes))
        )


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


def describe_model(checkpoint: Checkpoint) -> Inspection:
    """What a model is, opened in any form."""
    header = checkpoint.header
    named = _named_parts(checkpoint)
    found = [part for part in PART_LABELS.values() if part in named]
    family = _family(named)
    what = _kind(found) + (f" of {family}" if family else "")
    return Inspection(
        path=checkpoint.label,
        what=what + (", in diffusers' names" if checkpoint.component else ""),
        format=FORMATS[header.kind],
        size=header.size,
        family=family,
        parts=tuple(PartSummary.of(name, tensors.values()) for name, tensors in named.items()),
        predicts=_prediction(checkpoint, family) if UNET in named else None,
        control=control_kind(checkpoint.path) if CONTROL in named else None,
        beside=header.others,
        missing=_missing(found),
        notes=_notes(named),
    )


def _named_parts(checkpoint: Checkpoint) -> dict[str, dict[str, TensorHeader]]:
    """The tensors of each part, by what messages call it: first those of PART_LABELS, then the rest.

    Names lose the prefix of their part.
    """
    named: dict[str, dict[str, TensorHeader]] = {part: {} for part in (*PART_LABELS.values(), EMA, SCHEDULE)}
    prefix = checkpoint.missing_prefix
    for name, tensor in checkpoint.header.tensors.items():
        full = prefix + name
        owner = next((one for one in PART_LABELS if full.startswith(one)), "")
        part = PART_LABELS.get(owner) or (
            EMA if name.startswith(EMA_PREFIX) else UNKNOWN if "." in name else SCHEDULE
        )
        named.setdefault(part, {})[full.removeprefix(owner)] = tensor
    return {part: inside for part, inside in named.items() if inside}


def _kind(found: list[str]) -> str:
    if not found:
        return "no model that is known here"
    if found == list(PART_LABELS.values()):
        return "base model with a control branch"
    return "base model" if found == BASE else f"{' and '.join(found)} alone"


def _family(named: Mapping[str, Tensors]) -> str | None:
    """Whose text it reads or writes; None where nothing tells, as of an autoencoder."""
    shapes = {name: one.shape for part in named.values() for name, one in part.items()}
    tokens = (one.shape[-1] for name, one in named.get(TEXT, {}).items() if name.endswith(TOKENS))
    width = context_width(shapes) or next(tokens, None)
    if width is None:
        return None
    first = _first_convolution(named)
    if width in FAMILIES and (first is None or first[0] == PUBLISHED_CHANNELS):
        return FAMILIES[width]
    if first and (width, first[0]) == TINY:
        return "the tiny model of this project"
    return f"a size of its own (text of width {width}{f', {first[0]} channels' if first else ''})"


def _first_convolution(named: Mapping[str, Tensors]) -> tuple[int, ...] | None:
    """Shape of the one that the U-Net, or its copy in the control branch, begins with."""
    inside = named.get(UNET) or named.get(CONTROL) or {}
    return next((inside[name].shape for name in FIRST_CONVOLUTION if name in inside), None)


def _prediction(checkpoint: Checkpoint, family: str | None) -> str:
    header = checkpoint.header
    if said := checkpoint.settings.get("scheduler", {}).get("prediction_type"):
        return f"{PREDICTIONS.get(said, said)}, says {SCHEDULER.as_posix()}"
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
    if not found:
        return ()
    base = [part for part in BASE if part not in found]
    lines = [f"{', '.join(base)}: give a base model before it"] if base else []
    if CONTROL not in found:
        lines.append(f"{CONTROL}: give one behind it, such as control_v11p_sd15_canny.safetensors")
    return tuple(lines)


def _notes(named: Mapping[str, Tensors]) -> tuple[str, ...]:
    first = _first_convolution(named)
    notes = []
    if first and first[1] in INPUTS:
        notes.append(f"its U-Net takes {INPUTS[first[1]]}, which no model here does")
    if EMA in named:
        notes.append("use_ema=True loads its moving averages in place of the weights")
    if UNKNOWN in named:
        notes.append(f"names of no part that is known here: {quote(list(named[UNKNOWN]))}")
    return tuple(notes)
