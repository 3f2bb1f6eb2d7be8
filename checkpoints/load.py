"""Weights on disk -> a ready model, the only way in: safe, checked before anything changes, never held twice.

A model is built on the meta device, where it has shapes but no memory; tensors mapped from the file become
its parameters as they are. Where the dtype must change, the file is walked in pieces, so that its pages and
the new tensors are never both in memory as a whole. Several files overlay each other and the last one wins: a
base, then a control branch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import Source, Weights, open_checkpoint
from checkpoints.files.lazy import LazyTensor, Values, read, release, walk
from checkpoints.names.original import EMA_PREFIX, Shapes, context_width, family, part_of
from common.shell import quote

log = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)  # what a schedule must not be rounded to
COARSE_SCHEDULE = "schedule in half precision, which the model computes exactly"


@dataclass(frozen=True)
class LoadReport:
    """What `assign_weights` did.

    sources: where the weights came from; assigned: how many tensors; averaged: how many of these are moving
    averages; dropped: reason -> how many; own: names that no source had and the model computes itself.
    """

    sources: tuple[str, ...]
    assigned: int
    averaged: int
    dropped: dict[str, int]
    own: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.assigned} tensors from {' + '.join(self.sources)}"]
        parts += [f"{self.averaged} of them moving averages"] if self.averaged else []
        parts += [f"left out {count}: {reason}" for reason, count in self.dropped.items()]
        parts += [f"computed by the model: {quote(self.own)}"] if self.own else []
        return "; ".join(parts)


def read_state_dict(source: Source, *, use_ema: bool = False) -> dict[str, Tensor]:
    """The weights of any source under the names of a whole model, on the CPU, mapped where that can be.

    Errors as `checkpoints.checkpoint.open_checkpoint` and `Checkpoint.weights`.
    """
    weights = open_checkpoint(source).weights(use_ema=use_ema)
    return {name: read(tensor) for name, tensor in weights.state.items()}


def assign_weights(  # noqa: PLR0913 - one name for each thing that a caller decides
    model: nn.Module,
    *sources: Source,
    dtype: torch.dtype | None = None,
    use_ema: bool = False,
    only: str = "",
    shrink: Callable[[nn.Module, Shapes], object] | None = None,
) -> LoadReport:
    """Make the tensors of `sources` (files, dictionaries or what is open, the last wins) those of `model`.

    They stay on the CPU, mapped from their file where its dtype is the wanted one. dtype: of floating
    parameters, None for what the model was built with; buffers always keep theirs. only: a prefix such as
    "control_model."; other names are passed over. shrink: makes a model without memory as small as pruned
    weights of these shapes. Raises ValueError, with `model` otherwise untouched, where names or shapes do not
    fit or use_ema finds no moving averages.
    """
    opened = _open_all(sources, use_ema=use_ema)
    if shrink:
        shrink(model, {name: tuple(t.shape) for one in opened for name, t in one.state.items()})
    # Shapes and dtypes only: the tensors of a model that already has memory must go as the new ones come.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtypes = {name: _dtype(tensor, dtype) for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name for name, buffer in model.named_buffers() if name in shapes and not buffer.is_meta}
    for one in opened:
        _leave_out(one, own, only)  # before anything is compared: what stays must fit
    winner = {name: one for one in opened for name in one.state}  # the last one wins
    wins = {one.label: [name for name in winner if winner[name] is one] for one in opened}
    contributed = {
        one.label: {name: tuple(one.state[name].shape) for name in wins[one.label]} for one in opened
    }
    check_fit(shapes, own, contributed)  # from here on nothing can be refused but by its numbers
    wanted = {one.label: {name: dtypes[name] for name in wins[one.label]} for one in opened}
    for one in opened:
        _check_numbers(one, wanted[one.label])
    final: dict[str, Tensor] = {}
    for one in opened:
        final |= _to_dtypes(one.state, wanted[one.label])
    model.load_state_dict(final, strict=False, assign=True)  # only constants are absent
    bare = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    assert not bare, f"buffers without memory, register them on the CPU: {bare}"
    report = LoadReport(
        sources=tuple(one.label for one in opened),
        assigned=len(final),
        averaged=sum(one.averaged for one in opened),
        dropped=dict(sum((one.dropped for one in opened), Counter())),  # this sum leaves out the zeros
        own=tuple(name for name in shapes if name not in final),
    )
    log.info("%s", report)
    return report


def check_fit(model: Shapes, optional: set[str], sources: Mapping[str, Shapes]) -> None:
    """Raise ValueError unless `sources` hold what `model` needs, in its shapes, and nothing else.

    sources: label -> what that source contributes, no name twice. optional: what the model has without them.
    """
    for label, shapes in sources.items():
        if shapes and not shapes.keys() & model.keys():
            raise ValueError(
                f"{label} is no checkpoint for this model, which has none of its {len(shapes)} names "
                f"({quote(list(shapes))})"
            )
    _check_family(model, sources)
    _check_shapes(model, sources)
    _check_names(model, optional, sources)


def _open_all(sources: Sequence[Source], *, use_ema: bool) -> list[Weights]:
    if not sources:
        kinds = "a .safetensors, .ckpt or .pth file, or a folder of diffusers"
        raise ValueError(f"no weights given: name {kinds}")
    numbered = enumerate(sources, start=1)
    checkpoints = [open_checkpoint(one, f"dictionary {number}") for number, one in numbered]
    opened = [one.weights(use_ema=use_ema) for one in checkpoints]
    if use_ema and not any(one.averaged for one in opened):
        labels = " + ".join(one.label for one in opened)
        raise ValueError(f"{labels}: no moving averages ({EMA_PREFIX}...) inside; load without use_ema")
    return opened


def _leave_out(one: Weights, own: set[str], only: str) -> None:
    for name in list(one.state):
        coarse = name in own and one.state[name].dtype in HALF  # the model has computed it already, exactly
        if coarse or not name.startswith(only):
            del one.state[name]
            one.dropped[COARSE_SCHEDULE] += coarse
    if only and not one.state:
        raise ValueError(f"{one.label} has no {part_of(only)}: no name in it begins with {only}")


def _check_numbers(one: Weights, dtypes: Mapping[str, torch.dtype]) -> None:
    """ValueError where the model computes with numbers of another kind: whole ones would become nonsense."""
    for name, wanted in dtypes.items():
        found = one.state[name].dtype
        if found.is_floating_point != wanted.is_floating_point or found.is_complex:
            raise ValueError(
                f"{one.label} has {name} in {found}, the model in {wanted}: is the file quantized? "
                "take the fp16 or fp32 one"
            )


def _to_dtypes(state: dict[str, Values], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """The tensors named in `dtypes`, each in its dtype; `state` gives up those that had another."""
    ready = {name: read(state[name]) for name, dtype in dtypes.items() if state[name].dtype == dtype}
    # What is converted must not be read through a mapping that the others keep: its pages would stay.
    release(file for one in state.values() if isinstance(one, LazyTensor) for file in one.sources)
    others = [name for name in dtypes if name not in ready]
    for name, tensor in walk((name, state.pop(name)) for name in others):
        ready[name] = tensor.to(dtypes[name])
    return ready


def _dtype(parameter: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    changes = dtype is not None and isinstance(parameter, nn.Parameter) and parameter.is_floating_point()
    return dtype if changes else parameter.dtype


def _check_family(model: Shapes, sources: Mapping[str, Shapes]) -> None:
    widths = {label: width for label in sources if (width := context_width(sources[label]))}
    wanted = context_width(model)
    others = [label for label, width in widths.items() if width != wanted]
    if wanted and others:  # first, for shapes would differ by the hundred then
        fitting = [label for label, width in widths.items() if width == wanted]
        raise ValueError(
            f"{' and '.join(others)}: made for {family(widths[others[0]])}, but the model"
            f"{''.join(' and ' + label for label in fitting)} for {family(wanted)}; "
            "take a yaml, a base and a control branch of one family"
        )


def _check_shapes(model: Shapes, sources: Mapping[str, Shapes]) -> None:
    for label, shapes in sources.items():
        wrong = [name for name in shapes if name in model and shapes[name] != model[name]]
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"{label} does not fit the model: {len(wrong)} tensors differ in shape, first {name} with "
                f"{list(shapes[name])} where the model has {list(model[name])}; check that the yaml is theirs"
            )


def _check_names(model: Shapes, optional: set[str], sources: Mapping[str, Shapes]) -> None:
    found = {name for shapes in sources.values() for name in shapes}
    missing = [name for name in model if name not in found and name not in optional]
    complaints, hint = [], "check that the yaml is theirs"
    if missing:
        parts = Counter(part_of(name) for name in missing)
        counts = ", ".join(f"{count} of the {part}" for part, count in parts.items())
        complaints.append(f"lacks {len(missing)} tensors of the model ({counts}; {quote(missing)})")
        hint = "name a file for every part: the base model, then the control branch"  # the usual reason
    for label, shapes in sources.items():
        if unknown := [name for name in shapes if name not in model]:
            where = f"{label} " if len(sources) > 1 else ""
            complaints.append(f"{where}has {len(unknown)} unknown to the model ({quote(unknown)})")
    if complaints:
        raise ValueError(f"{' + '.join(sources)} {' and '.join(complaints)}; {hint}")
