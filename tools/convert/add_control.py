"""A control branch beside a base model, before its training: what tool_add_control.py writes.

The branch begins with the U-Net's own values wherever names and shapes agree, and is drawn at random or zero
elsewhere (Zhang et al. 2023, section 3). The base goes from file to file as it is, tensor by tensor; only the
untrained branch is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from checkpoints import surgery
from checkpoints.checkpoint import Checkpoint, open_checkpoint
from checkpoints.diffusers.check import check_settings, published_yaml, read_params
from checkpoints.load import HALF, check_fit
from checkpoints.names.original import DROPPED, PART_LABELS, context_width
from cldm.model import fresh_branch, with_branch
from common.shell import quote
from ldm.config import create_meta_model, read_config
from tools.convert.files import SourceWeights, State, Target, open_original

OWN_PRECISION = "the branch is in fp32, the base as it was: half precision would round steps of training away"
# Of what a base loses on the way in: here the model puts it back.
COUNTED = next(reason for pattern, reason in DROPPED.items() if pattern.search(".position_ids"))


@dataclass(frozen=True)
class BranchInit:
    """How a branch begins. kind: one of `cldm.model.BRANCHES`, None for the yaml's; seed: of what is drawn.

    use_ema: the base's moving averages in place of its weights. replace: a branch that is there.
    """

    kind: str | None = None
    seed: int = 0
    use_ema: bool = False
    replace: bool = False  # else a trained branch would be gone by a slip


def add_control(base: Path | None, target: Target, config: Path, init: BranchInit) -> str:
    """Write `base` with a new control branch as one file for the model of a yaml; what was written, in lines.

    base: anything that loads as a whole base model, None for the first weights that the yaml names. Names are
    in the published order. Raises ValueError or OSError in one sentence, before anything is written.
    """
    params = read_params(config)
    settings = with_branch(config, init.kind) if init.kind else read_config(config)
    base = base or _named_base(config, settings)
    target.check_file(base)  # before gigabytes are read
    checkpoint = open_checkpoint(base)
    source = _open_base(checkpoint, init)
    check_settings(checkpoint, params, config)
    predicts = source.check_prediction(params, config)
    model = create_meta_model(settings)
    check_base(source, model, config)
    joined, copied = surgery.add_control(source.state, fresh_branch(settings, init.seed))
    state, computed = in_published_order(joined, model)
    notes = [*_report(joined, copied), *([f"computed from the yaml: {quote(computed)}"] if computed else [])]
    notes += [note for note in source.left_out if COUNTED not in note]
    return target.write_file(state, source.about(state, predicts), notes)


def check_base(source: SourceWeights, model: nn.Module, config: Path) -> None:
    """Raise ValueError unless `source` holds all that `model` has beside its branch, in its shapes."""
    parts = {prefix: part for prefix, part in PART_LABELS.items() if prefix != surgery.CONTROL}
    absent = [part for prefix, part in parts.items() if not any(n.startswith(prefix) for n in source.state)]
    if absent:
        lacks = ", ".join(absent)
        raise ValueError(f"{source.path} has no {lacks}: name a file or folder that holds a whole base model")
    wanted = {name: t for name, t in model.state_dict().items() if not name.startswith(surgery.CONTROL)}
    shapes = _shapes(source.state)
    try:
        check_fit(_shapes(wanted), set(_constants(model)), {str(source.path): shapes})
    except ValueError as error:
        fitting = published_yaml(context_width(shapes) or 0)
        such_as = f", such as models/{fitting.name}" if fitting and fitting.name != config.name else ""
        settings = f"the settings are those of {config}, --config names others{such_as}"
        raise ValueError(f"{error}; {settings}") from None
    for name, tensor in source.state.items():
        if tensor.dtype.is_floating_point != wanted[name].dtype.is_floating_point:
            cure = "is the file quantized? take the fp16 or fp32 one"
            raise ValueError(f"{source.path} has {name} in {tensor.dtype}: {cure}")


def in_published_order(state: State, model: nn.Module) -> tuple[State, list[str]]:
    """`state` in the order of `model`, with what only the yaml says filled in, and the names of that.

    A schedule in half precision counts as absent: the model computes it exactly.
    """
    constants = _constants(model)
    computed = [name for name in constants if name not in state or state[name].dtype in HALF]
    whole = {**state, **{name: constants[name] for name in computed}}
    return {name: whole[name] for name in model.state_dict()}, computed


def _named_base(config: Path, settings: DictConfig) -> Path:
    names = settings.get("weights")
    if not names:
        raise ValueError(f"{config} names no weights: give the base model in front of the file to write")
    return config.parent / names[0]


def _open_base(base: Checkpoint, init: BranchInit) -> SourceWeights:
    source = open_original(base, use_ema=init.use_ema)
    older = [name for name in source.state if name.startswith(surgery.CONTROL)]
    if not older or len(older) == len(source.state):  # a branch alone is refused with the other half models
        return source
    if not init.replace:
        cure = "train that one, or --replace-branch begins a new one"
        raise ValueError(f"{base.label} has a control branch already: {cure}")
    note = f"left out the control branch that was there: {len(older)} tensors"
    for name in older:
        del source.state[name]
    return replace(source, left_out=(*source.left_out, note))


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """What a model on the meta device has computed itself, by the names that it stores."""
    stored = model.state_dict().keys()
    return {name: one for name, one in model.named_buffers() if name in stored and not one.is_meta}


def _report(state: State, copied: Sequence[str]) -> list[str]:
    """What of the branch is copied and what is new, in lines."""
    groups: dict[str, list[str]] = {}  # by the first word of their names: a line each
    for name in state:
        if name.startswith(surgery.CONTROL) and name not in copied:
            groups.setdefault(name.removeprefix(surgery.CONTROL).split(".")[0], []).append(name)
    lines = [f"copied from the U-Net: {_counted(copied, state)}"] if copied else []
    for group, names in groups.items():
        weights = sum(state[name].shape.numel() for name in names)
        zeros = sum(int((state[name] == 0).sum()) for name in names)
        begins = "all zero" if zeros == weights else f"{zeros:,} of them zero" if zeros else "drawn"
        lines.append(f"new {group}: {_counted(names, state)}, {begins}")
    unet = (t for name, t in state.items() if name.startswith(surgery.UNET))
    return [*lines, OWN_PRECISION] if any(t.dtype != torch.float32 for t in unet) else lines


def _counted(names: Sequence[str], state: State) -> str:
    weights = sum(state[name].shape.numel() for name in names)
    some = quote([name.removeprefix(surgery.CONTROL) for name in names])
    return f"{len(names)} tensors, {weights:,} weights ({some})"


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
