"""Conversions of weights on disk, from one form into another; none needs the model in memory.

Results are files of torch or safetensors, or folders of diffusers; each conversion says what it wrote.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from checkpoints import surgery
from checkpoints.checkpoint import FOLDER, open_checkpoint
from checkpoints.diffusers.check import WHOLE, check_parts, choose_config, read_params
from checkpoints.diffusers.configs import is_open_clip
from checkpoints.diffusers.folder import CLASSES
from checkpoints.diffusers.write import write_part, write_pipeline
from checkpoints.files.write import SAFETENSORS, write_weights
from checkpoints.names.diffusers import COMPONENTS, OPEN_CLIP
from common.atomic import MIB, atomic_write, check_space
from tools.convert.files import (
    SourceWeights,
    State,
    Target,
    left_out,
    open_as_it_is,
    open_original,
    total_bytes,
)
from tools.convert.quantized import flattened, mark, metadata_of, open_quantized

IDLE_TEXT = "cond_stage_model.model.text_projection"
IDLE_NOTE = "the last text block of SD 2.x, which never runs and diffusers does not keep, is all zeros"


def to_safetensors(source: Path, target: Target) -> str:
    """The tensors of any file, under its own names, as safetensors."""
    target.check_file(source, only=[SAFETENSORS])
    return to_dtype(source, target)


def to_dtype(source: Path, target: Target) -> str:
    """The tensors of any file, under its own names, in the dtype of the target."""
    target.check_file(source)
    file = open_as_it_is(source)
    return target.write_file(file.state, file.about(file.state), file.left_out)


def strip(source: Path, target: Target, *, use_ema: bool = False) -> str:
    """A file without what only training needs: moving averages, the trainer's state, losses."""
    target.check_file(source)
    file, kept, notes = _stripped(source, use_ema=use_ema)
    return target.write_file(kept, file.about(kept), notes)


def strip_plan(source: Path, *, use_ema: bool = False) -> str:
    """What `strip` would remove, with its size, in lines."""
    _, kept, notes = _stripped(source, use_ema=use_ema)
    lines = [note.replace("left out", "would go:") for note in notes]
    stays = f"would stay: {len(kept)} tensors, {total_bytes([kept]) / MIB:.1f} MiB"
    return "\n".join([*(lines or ["nothing in it is for training only"]), stays])


def extract_control(source: Path, target: Target) -> str:
    """The control branch of a full model, under the original names."""
    target.check_file(source)
    full = open_original(source)
    try:
        branch = surgery.extract_control(full.state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return target.write_file(branch, full.about(branch))


def transfer_control(source: Path, target: Target, *, from_base: Path, to_base: Path) -> str:
    """A control branch, or a full model, of one base moved to another: w + (new - old)."""
    target.check_file(source, from_base, to_base)
    branch, old, new = (open_original(path) for path in (source, from_base, to_base))
    try:
        moved = surgery.transfer_control(branch.state, old.state, new.state)
    except ValueError as error:
        raise ValueError(f"{source} cannot go from {from_base} (old) to {to_base} (new): {error}") from None
    followed = sum(moved[name] is not branch.state[name] for name in moved)
    note = f"{followed} tensors followed the base, {len(moved) - followed} are unchanged"
    return target.write_file(moved, branch.about(moved), [note])


def to_original(source: Path, target: Target) -> str:
    """A folder or file under diffusers' names as one file under the original ones."""
    target.check_file(source)
    checkpoint = open_checkpoint(source)
    if checkpoint.header.kind != FOLDER and not checkpoint.component:
        has = f"{source} has the original names already"
        raise ValueError(f"{has}: to-safetensors and to-dtype change its form")
    model = open_original(checkpoint)
    idle = [IDLE_NOTE] if IDLE_TEXT in model.state else []
    return target.write_file(model.state, model.about(model.state), [*idle, *model.left_out])


def to_diffusers(source: Path, target: Target, config: Path | None = None, *, use_ema: bool = False) -> str:
    """Write `source` as a folder; what was written, in lines.

    config: the yaml of the model, None for the published one that fits. Of a quantized file the int8 matrices
    become torchao's, in their codes; the rest is decoded.
    """
    target.check_folder(source)
    model = _open(source, target, config, use_ema=use_ema)
    parts = _split(model)  # under the original names
    config = config or choose_config(source, parts, model.prediction)
    check_parts(source, parts, config)  # before a folder is made
    params = read_params(config)
    predicts = model.check_prediction(params, config)
    renaming = COMPONENTS | ({"text_encoder": OPEN_CLIP} if is_open_clip(params) else {})
    theirs = flattened({part: renaming[part].to_diffusers(state) for part, state in parts.items()})
    overflow: Counter[str] = Counter()  # filled while tensors are written
    states = {part: target.cast(state, overflow) for part, state in theirs.items()}
    check_space(target.path, total_bytes(states.values()))

    def write(path: Path, state: State) -> None:
        about = model.about(state, predicts) | metadata_of(state)
        write_weights(path, state, metadata=about, on_bytes=bar.update)
        mark(path.parent, state)  # behind its config.json, which is written first

    with target.progress(states.values()) as bar, atomic_write(target.path) as folder:
        folder.mkdir()
        if len(states) > 1:  # a pipeline; else the part alone
            write_pipeline(folder, states, params, write)
        else:
            [(part, state)] = states.items()
            write_part(folder, part, state, params, write)
    notes = [f"the settings are those of {config}", *model.left_out]
    if "text_encoder" in parts and is_open_clip(params):
        notes.append("left out the last text block and the text projection, which never run")
    if any(map(metadata_of, theirs.values())):
        notes.append("int8 matrices of U-Net and branch keep their codes, as torchao's; the rest is decoded")
    if rest := len(model.state) - sum(map(len, parts.values())):
        notes.append(f"left out {rest} tensors: schedule, which diffusers computes")
    return target.summary(states.values(), notes, overflow)


def _stripped(source: Path, *, use_ema: bool) -> tuple[SourceWeights, State, list[str]]:
    file = open_as_it_is(source)
    try:
        kept, gone = surgery.strip(file.state, use_ema=use_ema)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    sizes = {reason: sum(file.state[name].nbytes for name in names) for reason, names in gone.items()}
    notes = [left_out(reason, sizes[reason], len(names)) for reason, names in gone.items()]
    return file, kept, [*notes, *file.left_out]


def _open(source: Path, target: Target, config: Path | None, *, use_ema: bool) -> SourceWeights:
    checkpoint = open_checkpoint(source)
    if not checkpoint.is_quantized:
        return open_original(checkpoint, use_ema=use_ema)
    if use_ema or target.dtype:
        without = "leave out --use-ema and --dtype, from_pretrained has torch_dtype= for it"
        raise ValueError(f"{source} is quantized: {without}")
    return open_quantized(checkpoint, config)


def _split(model: SourceWeights) -> dict[str, State]:
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
        needs = "a pipeline needs all, a folder of one part one"
        raise ValueError(f"{model.path} has {has} but no {lacks}: {needs}")
    return parts


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
