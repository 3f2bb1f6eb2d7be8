"""Conversions of weights on disk into one file; none needs the model in memory. Each says what it wrote."""

from __future__ import annotations

from pathlib import Path

from checkpoints import surgery
from checkpoints.checkpoint import FOLDER, open_checkpoint
from checkpoints.files.write import SAFETENSORS
from common.atomic import MIB
from tools.convert.diffusers import to_diffusers
from tools.convert.files import (
    SourceWeights,
    State,
    Target,
    check_file,
    left_out,
    open_as_it_is,
    open_original,
    write_file,
)

IDLE_TEXT = "cond_stage_model.model.text_projection"
IDLE_NOTE = "the last text block of SD 2.x, which never runs and diffusers does not keep, is all zeros"


def to_safetensors(source: Path, target: Target) -> str:
    """The tensors of any file, under its own names, as safetensors."""
    check_file(target, source, only=[SAFETENSORS])
    return to_dtype(source, target)


def to_dtype(source: Path, target: Target) -> str:
    """The tensors of any file, under its own names, in the dtype of the target."""
    check_file(target, source)
    file = open_as_it_is(source)
    return write_file(target, file.state, file.about(file.state), file.left_out)


def strip(source: Path, target: Target, *, use_ema: bool = False) -> str:
    """A file without what only training needs: moving averages, the trainer's state, losses."""
    check_file(target, source)
    file, kept, notes = _stripped(source, use_ema=use_ema)
    return write_file(target, kept, file.about(kept), notes)


def strip_plan(source: Path, *, use_ema: bool = False) -> str:
    """What `strip` would remove, with its size, in lines."""
    _, kept, notes = _stripped(source, use_ema=use_ema)
    lines = [note.replace("left out", "would go:") for note in notes]
    size = sum(tensor.nbytes for tensor in kept.values())
    stays = f"would stay: {len(kept)} tensors, {size / MIB:.1f} MiB"
    return "\n".join([*(lines or ["nothing in it is for training only"]), stays])


def extract_control(source: Path, target: Target) -> str:
    """The control branch of a full model, under the original names."""
    check_file(target, source)
    full = open_original(source)
    try:
        branch = surgery.extract_control(full.state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return write_file(target, branch, full.about(branch))


def transfer_control(source: Path, target: Target, *, from_base: Path, to_base: Path) -> str:
    """A control branch, or a full model, of one base moved to another: w + (new - old)."""
    check_file(target, source, from_base, to_base)
    branch, old, new = (open_original(path) for path in (source, from_base, to_base))
    try:
        moved = surgery.transfer_control(branch.state, old.state, new.state)
    except ValueError as error:
        raise ValueError(f"{source} cannot go from {from_base} (old) to {to_base} (new): {error}") from None
    followed = sum(moved[name] is not branch.state[name] for name in moved)
    note = f"{followed} tensors followed the base, {len(moved) - followed} are unchanged"
    return write_file(target, moved, branch.about(moved), [note])


def to_original(source: Path, target: Target) -> str:
    """A folder or file under diffusers' names as one file under the original ones."""
    check_file(target, source)
    checkpoint = open_checkpoint(source)
    if checkpoint.header.kind != FOLDER and not checkpoint.component:
        has = f"{source} has the original names already"
        raise ValueError(f"{has}: to-safetensors and to-dtype change its form")
    model = open_original(checkpoint)
    idle = [IDLE_NOTE] if IDLE_TEXT in model.state else []
    return write_file(target, model.state, model.about(model.state), [*idle, *model.left_out])


def _stripped(source: Path, *, use_ema: bool) -> tuple[SourceWeights, State, list[str]]:
    file = open_as_it_is(source)
    try:
        kept, gone = surgery.strip(file.state, use_ema=use_ema)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    sizes = {reason: sum(file.state[name].nbytes for name in names) for reason, names in gone.items()}
    notes = [left_out(reason, sizes[reason], len(names)) for reason, names in gone.items()]
    return file, kept, [*notes, *file.left_out]


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
