"""Anything that loads as a folder of diffusers: one part, or a pipeline with its tokenizer and schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import open_checkpoint
from checkpoints.diffusers.check import WHOLE, check_parts, choose_config, read_params
from checkpoints.diffusers.configs import is_open_clip, part_config
from checkpoints.diffusers.folder import CLASSES, CONFIG, INDEX
from checkpoints.diffusers.write import write_part, write_pipeline
from checkpoints.files.write import SUFFIXES, write_weights
from checkpoints.names.diffusers import COMPONENTS, OPEN_CLIP
from common.atomic import atomic_write, check_space
from tools.convert.files import SourceWeights, State, Target, bytes_bar, open_original
from tools.convert.quantized import flattened, mark, metadata_of, open_quantized


def to_diffusers(source: Path, target: Target, config: Path | None = None, *, use_ema: bool = False) -> str:
    """Write `source` as a folder; what was written, in lines.

    config: the yaml of the model, None for the published one that fits. Of a quantized file the int8 matrices
    become torchao's, in their codes; the rest is decoded.
    """
    _check_folder(target, source)
    model = _open(source, target, config, use_ema=use_ema)
    parts = _split(model)
    config = config or choose_config(source, parts, model.prediction)
    check_parts(source, parts, config)
    params = read_params(config)
    predicts = check_prediction(model.prediction if "unet" in parts else None, params, source, config)
    renaming = COMPONENTS | ({"text_encoder": OPEN_CLIP} if is_open_clip(params) else {})
    theirs = flattened({part: renaming[part].to_diffusers(state) for part, state in parts.items()})
    overflow: Counter[str] = Counter()
    states = {part: target.cast(state, overflow) for part, state in theirs.items()}
    check_space(target.path, sum(tensor.nbytes for state in states.values() for tensor in state.values()))

    def write(path: Path, state: State) -> None:
        about = model.about(state, predicts) | metadata_of(state)
        write_weights(path, state, metadata=about, on_bytes=bar.update)
        mark(path.parent, state)

    with bytes_bar(states.values()) as bar, atomic_write(target.path) as folder:
        folder.mkdir()
        if len(states) > 1:
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


def check_prediction(said: str | None, params: Mapping[str, Any], source: Path, config: Path) -> str:
    """What a model of the yaml parameters `params` predicts; ValueError where `source` has said otherwise."""
    predicts = part_config("scheduler", params)["prediction_type"]
    if said not in (None, predicts):
        raise ValueError(f"{source} says that it predicts {said}, but {config} means {predicts}")
    return predicts


def _check_folder(target: Target, source: Path) -> None:
    """ValueError unless a folder of diffusers can be written without harm to `source` and others."""
    path = target.path
    if path.suffix in SUFFIXES or path.is_file():
        raise ValueError(f"{path}: the result is a folder, name it without a suffix")
    target.check([source])
    is_ours = any((path / name).is_file() for name in (INDEX, CONFIG))
    if path.is_dir() and any(path.iterdir()) and not is_ours:
        raise ValueError(f"{path} holds something other than a model of diffusers: name a new folder")


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
