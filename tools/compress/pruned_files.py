"""Pruned models on disk: tensors on their way from weights files into a smaller one, and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import Values, by_rows
from checkpoints.files.write import write_weights
from quantize.files.write import hash_files
from quantize.prune.masks import two_of_four, without_small
from quantize.prune.record import METADATA_KEY, SUFFIX, Record
from quantize.prune.units import Group, Kept, take

State = Mapping[str, Values]


def merged(model: nn.Module, weights: Iterable[Path]) -> dict[str, Values]:
    """What `model` was loaded with, in the files' own types, read as it is asked for."""
    state: dict[str, Values] = {}
    for path in weights:
        state |= open_checkpoint(path).weights().state
    return {name: state[name] for name in model.state_dict() if name in state}


def begin_record(config: Path, weights: Sequence[Path]) -> Record:
    """What was done to `weights` before, with their hashes."""
    known = [record for path in weights if (record := open_checkpoint(path).pruning)]
    steps = tuple(step for record in known for step in record.steps)
    counts = {name: count for record in known for name, count in record.counts.items()}
    masked = {name: pattern for record in known for name, pattern in record.masked.items()}
    return Record(config.name, steps, counts, masked, hash_files(weights))


def without_units(state: State, groups: Iterable[Group], kept: Kept) -> dict[str, Values]:
    """`state` with the units `kept` alone."""
    smaller = dict(state)
    for group in groups:
        if len(kept.get(group.name, range(group.count))) < group.count:
            for cut in group.cuts:
                smaller[cut.tensor] = take(smaller[cut.tensor], group, cut, kept[group.name])
    return smaller


def with_zeros(state: State, borders: Mapping[str, float]) -> dict[str, Values]:
    """`state` with zeros for weights below the border of their layer."""
    changed = dict(state)
    for layer, border in borders.items():
        weight = state[name := f"{layer}.weight"]
        changed[name] = by_rows(lambda values, b=border: without_small(values, b), weight.dtype, weight)
    return changed


def with_two_of_four(state: State, layers: Iterable[str]) -> dict[str, Values]:
    """`state` with two zeros in every four inputs of `layers`."""
    names = [f"{layer}.weight" for layer in layers]
    return {**state, **{name: by_rows(two_of_four, state[name].dtype, state[name]) for name in names}}


def write_pruned(path: Path, state: State, record: Record) -> Path:
    """Write a pruned model. Raises ValueError for another suffix, else as
    `checkpoints.files.write.write_weights`.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: pruned models are {SUFFIX} files, name it {path.stem}{SUFFIX}")
    return write_weights(path, state, metadata={METADATA_KEY: record.to_json()})
