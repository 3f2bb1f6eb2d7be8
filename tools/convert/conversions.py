"""Conversions of weights on disk, from one form into another; none needs the model in memory.

Sources are files or folders of diffusers in any form that loads; results are files of torch or safetensors,
or folders of diffusers. What is wrong with either is said before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import surgery
from checkpoints.checkpoint import FOLDER, open_checkpoint
from checkpoints.diffusers.check import WHOLE, check_parts, choose_config, read_params
from checkpoints.diffusers.configs import is_open_clip, part_config
from checkpoints.diffusers.folder import CLASSES
from checkpoints.diffusers.write import Write, write_part, write_pipeline
from checkpoints.files.write import SAFETENSORS
from checkpoints.names.diffusers import COMPONENTS, OPEN_CLIP
from common.atomic import MIB
from tools.convert.quantized import flattened, mark, metadata_of, open_quantized
from tools.convert.source import Source, left_out, open_as_it_is, open_original
from tools.convert.target import Result, State, Target, check_file, check_folder, write_file, write_folder

IDLE_TEXT = "cond_stage_model.model.text_projection"
IDLE_NOTE = "the last text block of SD 2.x, which never runs and diffusers does not keep, is all zeros"


def to_safetensors(source: Path, target: Target) -> Result:
    """The tensors of any file, under its own names, as safetensors."""
    check_file(target, [source], only=[SAFETENSORS])
    return to_dtype(source, target)


def to_dtype(source: Path, target: Target) -> Result:
    """The tensors of any file, under its own names, in the dtype of the target."""
    check_file(target, [source])
    file = open_as_it_is(source)
    return _noted(write_file(target, file.state, file.about), *file.left_out)


def strip(source: Path, target: Target, *, use_ema: bool = False) -> Result:
    """A file without what only training needs: moving averages, the trainer's state, losses."""
    check_file(target, [source])
    file, kept, notes = _stripped(source, use_ema=use_ema)
    return _noted(write_file(target, kept, file.about), *notes)


def strip_plan(source: Path, *, use_ema: bool = False) -> str:
    """What `strip` would remove, with its size, in lines."""
    _, kept, notes = _stripped(source, use_ema=use_ema)
    lines = [note.replace("left out", "would go:") for note in notes] or [
        "nothing in it is for training only"
    ]
    size = sum(tensor.nbytes for tensor in kept.values())
    return "\n".join([*lines, f"would stay: {len(kept)} tensors, {size / MIB:.1f} MiB"])


def extract_control(source: Path, target: Target) -> Result:
    """The control branch of a full model, under the original names."""
    check_file(target, [source])
    full = open_original(source)
    try:
        branch = surgery.extract_control(full.state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return write_file(target, branch, full.about)


def transfer_control(source: Path, target: Target, *, from_base: Path, to_base: Path) -> Result:
    """A control branch, or a full model, of one base moved to another: w + (new - old)."""
    check_file(target, [source, from_base, to_base])
    branch, old, new = (open_original(path) for path in (source, from_base, to_base))
    try:
        moved = surgery.transfer_control(branch.state, old.state, new.state)
    except ValueError as error:
        raise ValueError(f"{source} cannot go from {from_base} (old) to {to_base} (new): {error}") from None
    followed = sum(moved[name] is not branch.state[name] for name in moved)
    note = f"{followed} tensors followed the base, {len(moved) - followed} are unchanged"
    return _noted(write_file(target, moved, branch.about), note)


def to_original(source: Path, target: Target) -> Result:
    """A folder or file under diffusers' names as one file under the original ones."""
    check_file(target, [source])
    checkpoint = open_checkpoint(source)
    if checkpoint.header.kind != FOLDER and not checkpoint.component:
        raise ValueError(
            f"{source} has the original names already: to-safetensors and to-dtype change its form"
        )
    model = open_original(checkpoint)
    idle = [IDLE_NOTE] if IDLE_TEXT in model.state else []
    return _noted(write_file(target, model.state, model.about), *idle, *model.left_out)


def to_diffusers(
    source: Path, target: Target, config: Path | None = None, *, use_ema: bool = False
) -> Result:
    """Anything that loads as a folder of diffusers: one part, or a pipeline with its tokenizer and schedule.

    config: the yaml of the model, None for the published one that fits. Of a quantized file the int8 matrices
    become torchao's, in their codes; the rest is decoded.
    """
    check_folder(target, [source])
    model = _open(source, target, config, use_ema=use_ema)
    parts = _split(model)
    config = config or choose_config(source, parts, model.prediction)
    check_parts(source, parts, config)
    params = read_params(config)
    predicts = part_config("scheduler", params)["prediction_type"]
    if "unet" in parts and model.prediction not in (None, predicts):
        raise ValueError(f"{source} says that it predicts {model.prediction}, but {config} means {predicts}")
    text = OPEN_CLIP if is_open_clip(params) else COMPONENTS["text_encoder"]
    ways = COMPONENTS | {"text_encoder": text}
    theirs = flattened({part: ways[part].to_diffusers(state) for part, state in parts.items()})

    def fill(folder: Path, states: Mapping[str, State], write: Write) -> None:
        _fill(folder, states, params, write)

    def about(state: State) -> dict[str, str]:
        return replace(model, prediction=predicts).about(state) | metadata_of(state)

    notes = [f"the settings are those of {config}", *model.left_out]
    if "text_encoder" in parts and is_open_clip(params):
        notes.append("left out the last text block and the text projection, which never run")
    notes += _notes(model, parts, theirs)
    return _noted(write_folder(target, theirs, about, fill), *notes)


def _open(source: Path, target: Target, config: Path | None, *, use_ema: bool) -> Source:
    """What `to_diffusers` starts from; ValueError for what a quantized file cannot be asked for."""
    checkpoint = open_checkpoint(source)
    if not checkpoint.is_quantized:
        return open_original(checkpoint, use_ema=use_ema)
    if use_ema or target.dtype:
        raise ValueError(
            f"{source} is quantized: leave out --use-ema and --dtype, from_pretrained has torch_dtype= for it"
        )
    return open_quantized(checkpoint, config)


def _fill(folder: Path, states: Mapping[str, State], params: Mapping[str, Any], write: Write) -> None:
    """Write one part, or a pipeline of several."""
    whole = len(states) > 1
    if whole:
        write_pipeline(folder, states, params, write)
    for part, state in states.items():
        if not whole:
            write_part(folder, part, state, params, write)
        mark(folder / part if whole else folder, state)


def _notes(model: Source, parts: Mapping[str, State], theirs: Mapping[str, State]) -> list[str]:
    notes = []
    if any(map(metadata_of, theirs.values())):
        notes.append("int8 matrices of U-Net and branch keep their codes, as torchao's; the rest is decoded")
    if rest := len(model.state) - sum(map(len, parts.values())):
        notes.append(f"left out {rest} tensors: schedule, which diffusers computes")
    return notes


def _stripped(source: Path, *, use_ema: bool) -> tuple[Source, dict[str, State], list[str]]:
    file = open_as_it_is(source)
    try:
        kept, gone = surgery.strip(file.state, use_ema=use_ema)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    notes = [
        left_out(reason, sum(file.state[name].nbytes for name in names), len(names))
        for reason, names in gone.items()
    ]
    return file, kept, [*notes, *file.left_out]


def _split(model: Source) -> dict[str, State]:
    """The parts of a model without their prefixes: one, or all that a pipeline needs; ValueError else."""
    parts = {}
    for part, known in COMPONENTS.items():
        start = len(known.prefix)
        state = {name[start:]: t for name, t in model.state.items() if name.startswith(known.prefix)}
        parts |= {part: state} if state else {}
    if not parts:
        raise ValueError(f"{model.path} has no part of Stable Diffusion inside, nor a control branch")
    if missing := [part for part in WHOLE if part not in parts and len(parts) > 1]:
        has, lacks = (", ".join(CLASSES[part] for part in some) for some in (parts, sorted(missing)))
        raise ValueError(
            f"{model.path} has {has} but no {lacks}: a pipeline needs all, a folder of one part one"
        )
    return parts


def _noted(result: Result, *notes: str) -> Result:
    return replace(result, notes=(*notes, *result.notes))


# What tool_convert.py has commands for: (source, target, and the command's own flags) -> what was written.
CONVERSIONS = {
    "to-safetensors": to_safetensors,
    "to-dtype": to_dtype,
    "to-original": to_original,
    "to-diffusers": to_diffusers,
    "extract-control": extract_control,
    "transfer-control": transfer_control,
    "strip": strip,
}
