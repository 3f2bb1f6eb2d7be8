"""Weights on disk -> a ready model, the only way in: safe, checked before anything changes, never held twice.

A model is built on the meta device, where it has shapes but no memory; tensors mapped from the file become
its parameters as they are. Where the dtype must change, the file is walked in pieces, so that its pages and
the new tensors are never both in memory as a whole. Several files overlay each other and the last one wins: a
base, then a control branch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.compatibility import check_fit
from checkpoints.diffusers.folder import open_weights
from checkpoints.files.kinds import quote
from checkpoints.files.lazy import LazyTensor, Values, read, release, walk
from checkpoints.files.read import WeightFile
from checkpoints.names.original import EMA_PREFIX, ema_names, normalize_names, part_of

log = logging.getLogger(__name__)

Source = str | Path | Mapping[str, Tensor]

HALF = (torch.float16, torch.bfloat16)
TRAINER_STATE = "entries beside the weights (optimizer, callbacks, counters)"
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


@dataclass(frozen=True)
class Opened:
    """One source under canonical names; lazy tensors where it is a file that can be mapped.

    metadata: what a safetensors file says of itself.
    """

    label: str
    averaged: int
    state: dict[str, Values]
    dropped: Counter[str]
    metadata: Mapping[str, str]

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in `names`."""
        return {name: tuple(self.state[name].shape) for name in names}

    def brought_to(self, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """The tensors named in `dtypes`, each in its dtype; `state` gives up those that had another."""
        ready = {name: read(self.state[name]) for name, dtype in dtypes.items() if self._has(name, dtype)}
        others = [name for name in dtypes if name not in ready]
        # What is converted must not be read through a mapping that the others keep: its pages would stay.
        release(
            source for one in self.state.values() if isinstance(one, LazyTensor) for source in one.sources
        )
        for name, tensor in walk((name, self.state.pop(name)) for name in others):
            ready[name] = tensor.to(dtypes[name])
        return ready

    def _has(self, name: str, dtype: torch.dtype) -> bool:
        return self.state[name].dtype == dtype


def read_state_dict(path: str | Path, *, ema_of: Iterable[str] = ()) -> dict[str, Tensor]:
    """The weights of a published file or folder of any form, under the names of a whole model, on the CPU.

    Tensors are mapped from the file where its format allows that. ema_of: names of a model, to take moving
    averages for them. Raises FileNotFoundError, or ValueError for a file that is no checkpoint, is damaged or
    is hostile.
    """
    return {name: read(tensor) for name, tensor in open_source(path, ema_of=tuple(ema_of)).state.items()}


def open_source(source: Source, label: str = "the dictionary", ema_of: tuple[str, ...] = ()) -> Opened:
    """A file, a folder of diffusers or a dictionary called `label`, under canonical names.

    Errors as `read_state_dict`.
    """
    if isinstance(source, Mapping):
        file = WeightFile(dict(source), {}, mapped=False)
    else:
        file, label = open_weights(source), str(source)
    try:
        state, dropped = normalize_names(file.tensors, ema_of)
    except ValueError as error:
        raise ValueError(f"{label} cannot be loaded: {error}") from None
    if file.others:
        dropped[TRAINER_STATE] += len(file.others)
    averaged = len(ema_names(ema_of).keys() & file.tensors.keys())
    return Opened(label, averaged, state, dropped, file.metadata)


def assign_weights(
    model: nn.Module,
    *sources: Source,
    dtype: torch.dtype | None = None,
    use_ema: bool = False,
    only: str = "",
) -> LoadReport:
    """Make the tensors of `sources` (files or dictionaries, the last wins) the parameters of `model`.

    They stay on the CPU, mapped from their file where its dtype is the wanted one. dtype: of floating
    parameters, None for what the model was built with; buffers always keep theirs. only: a prefix such as
    "control_model."; other names are passed over. Raises ValueError, with `model` untouched, where names or
    shapes do not fit or use_ema finds no moving averages.
    """
    # Shapes and dtypes only: the tensors of a model that already has memory must go as the new ones come.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtypes = {name: _dtype(tensor, dtype) for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name for name, buffer in model.named_buffers() if name in shapes and not buffer.is_meta}
    opened = _open_all(sources, ema_of=tuple(shapes) if use_ema else ())
    for one in opened:
        _leave_out(one, own, only)
    winner = {name: one for one in opened for name in one.state}
    wins = {one.label: [name for name in winner if winner[name] is one] for one in opened}
    check_fit(shapes, own, {one.label: one.shapes(wins[one.label]) for one in opened})
    for one in opened:
        _check_numbers(one, {name: dtypes[name] for name in wins[one.label]})
    final: dict[str, Tensor] = {}
    for one in opened:
        final |= one.brought_to({name: dtypes[name] for name in wins[one.label]})
    model.load_state_dict(final, strict=False, assign=True)  # only constants are absent
    bare = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    assert not bare, f"buffers without memory, register them on the CPU: {bare}"
    return _report(opened, shapes, final)


def _open_all(sources: Sequence[Source], ema_of: tuple[str, ...]) -> list[Opened]:
    if not sources:
        raise ValueError(
            "no weights given: name a .safetensors, .ckpt or .pth file, or a folder of diffusers"
        )
    opened = [open_source(one, f"dictionary {number}", ema_of) for number, one in enumerate(sources, start=1)]
    if ema_of and not any(one.averaged for one in opened):
        labels = " + ".join(one.label for one in opened)
        raise ValueError(f"{labels}: no moving averages ({EMA_PREFIX}...) inside; load without use_ema")
    return opened


def _leave_out(one: Opened, own: set[str], only: str) -> None:
    for name in list(one.state):
        coarse = name in own and one.state[name].dtype in HALF
        if coarse or not name.startswith(only):
            del one.state[name]
            one.dropped[COARSE_SCHEDULE] += coarse
    if only and not one.state:
        raise ValueError(f"{one.label} has no {part_of(only)}: no name in it begins with {only}")


def _check_numbers(one: Opened, dtypes: Mapping[str, torch.dtype]) -> None:
    """ValueError where the model computes with numbers of another kind: whole ones would become nonsense."""
    for name, wanted in dtypes.items():
        found = one.state[name].dtype
        if found.is_floating_point != wanted.is_floating_point or found.is_complex:
            raise ValueError(
                f"{one.label} has {name} in {found}, the model in {wanted}: is the file quantized? "
                "take the fp16 or fp32 one"
            )


def _dtype(parameter: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    changes = dtype is not None and isinstance(parameter, nn.Parameter) and parameter.is_floating_point()
    return dtype if changes else parameter.dtype


def _report(opened: list[Opened], names: Iterable[str], final: Mapping[str, Tensor]) -> LoadReport:
    report = LoadReport(
        sources=tuple(one.label for one in opened),
        assigned=len(final),
        averaged=sum(one.averaged for one in opened),
        dropped=dict(sum((one.dropped for one in opened), Counter())),  # this sum leaves out the zeros
        own=tuple(name for name in names if name not in final),
    )
    log.info("%s", report)
    return report
