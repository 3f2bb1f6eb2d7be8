"""Structured pruning: heads and channels that leave a network together with all of their weights.

Which tensors belong to a unit is data, given by who knows the network. A unit must be read by layers that sum
over units: then taking it away is the same as zeros in their columns, to the rounding of sums, and what is
left is an ordinary smaller network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Scope = Literal["layer", "global"]  # whether a share is of every layer, or of all of them by one order
Shapes = Mapping[str, tuple[int, ...]]
Kept = Mapping[str, Sequence[int]]  # name of a group -> its units that stay, ascending


@dataclass(frozen=True)
class Cut:
    """An axis of a tensor that units lie along, all of them in order."""

    tensor: str  # its name in the model
    axis: int
    parts: int = 1  # so many runs of all units behind each other
    reads: bool = False  # whether the tensor sums over the units, as a weight does along its inputs


@dataclass(frozen=True)
class Group:
    """The units of one layer."""

    name: str
    kind: str  # for whoever prunes one kind alone
    count: int  # of units
    width: int  # neighbours on an axis that make one unit
    cuts: tuple[Cut, ...]
    counters: tuple[str, ...] = ()  # attributes of modules, by dotted names, that hold the number of units
    multiple: int = 1  # kernels like a number of units that it divides

    def shape(self, cut: Cut, full: Sequence[int], count: int) -> tuple[int, ...]:
        """Of the tensor of `cut`, whose whole shape is `full`, with `count` units."""
        shape = list(full)
        shape[cut.axis] = cut.parts * count * self.width
        return tuple(shape)

    def per_unit(self, values: Tensor, cut: Cut) -> Tensor:
        """Values shaped as the tensor of `cut`, or its axis, added up by unit: [count]."""
        by_place = values.movedim(cut.axis, 0).reshape(cut.parts, self.count, -1)
        return by_place.sum(dim=(0, 2))


def take(tensor: Any, group: Group, cut: Cut, kept: Sequence[int]) -> Any:
    """The units `kept` of a tensor, in memory of its own; of one that is read later, later."""
    runs = torch.arange(tensor.shape[cut.axis]).reshape(cut.parts, group.count, group.width)
    places = runs[:, list(kept)].flatten()  # [parts * kept * width], along the axis
    if isinstance(tensor, Tensor):
        places = places.to(tensor.device)
    return torch.index_select(tensor, cut.axis, places)


def shrink_(model: nn.Module, groups: Iterable[Group], kept: Kept) -> None:
    """Leave only the units `kept` in `model`, which may have no memory; groups without an entry stay whole.

    Raises ValueError for units that a group does not have, or where none would stay.
    """
    for group in groups:
        units = list(kept.get(group.name, range(group.count)))
        if not units or units != sorted(set(units)) or not 0 <= units[0] <= units[-1] < group.count:
            raise ValueError(f"{group.name} has units 0 to {group.count - 1}: keep some, each once, in order")
        if len(units) == group.count:
            continue
        for cut in group.cuts:
            owner, _, leaf = cut.tensor.rpartition(".")
            layer = model.get_submodule(owner)
            old = getattr(layer, leaf)
            smaller = take(old.detach(), group, cut, units)
            setattr(layer, leaf, nn.Parameter(smaller, requires_grad=old.requires_grad))
            _say_sizes(layer)
        for counter in group.counters:
            owner, _, attribute = counter.rpartition(".")
            setattr(model.get_submodule(owner), attribute, len(units))


def counts_in(groups: Iterable[Group], shapes: Shapes, full: Shapes) -> dict[str, int]:
    """How many units of each group tensors of these shapes have, where they have some of them.

    full: shapes of the whole model. A group of which `shapes` says nothing, or what contradicts itself or the
    rest of a tensor, counts as whole: whoever loads the tensors will say what is wrong.
    """
    found = {group.name: _count(group, shapes, full) for group in groups}
    return {group.name: count for group in groups if (count := found[group.name]) not in (None, group.count)}


def _count(group: Group, shapes: Shapes, full: Shapes) -> int | None:
    counts = set()
    for cut in group.cuts:
        if cut.tensor not in shapes:
            continue
        shape = tuple(shapes[cut.tensor])
        if len(shape) <= cut.axis:
            return None
        count, rest = divmod(shape[cut.axis], cut.parts * group.width)
        if rest or not 0 < count <= group.count or shape != group.shape(cut, full[cut.tensor], count):
            return None
        counts.add(count)
    return counts.pop() if len(counts) == 1 else None


def _say_sizes(layer: nn.Module) -> None:
    """Sizes that a layer keeps beside its weight, for whoever prints or quantizes it."""
    shape = layer.weight.shape
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = shape[0]
