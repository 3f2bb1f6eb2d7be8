"""Ranges of layers' inputs from a few runs of the float model, apart for each group of timesteps.

Hooks watch the layers that a plan makes static. The range is all that was seen: a few images show few of the
large values to come, so that leaving any out cost more than the finer steps won.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from quantize.activations import range_of
from quantize.arithmetic import check_finite
from quantize.schemes import Ranges, get_scheme
from quantize.selection import Plan
from quantize.timesteps import current_group

Range = tuple[float, float]  # lowest, highest


class MinMaxObserver:
    """Ranges by layer; `groups` groups of timesteps, or None where the schedule plays no part."""

    def __init__(self, groups: int | None = None) -> None:
        self.groups = groups
        self._seen: dict[str, dict[int | None, Range]] = {}  # by layer, then by group

    def see(self, name: str, x: Tensor) -> None:
        """Take the input x of layer `name` into account, in the current group of timesteps.

        Raises ValueError for NaN and infinity.
        """
        if not x.numel():  # an empty batch has no extremes
            return
        low, high = range_of(x.detach().float())
        if not (math.isfinite(low) and math.isfinite(high)):
            check_finite(x, f"an input of {name}")
        group = current_group() if self.groups else None
        by_group = self._seen.setdefault(name, {})
        least, most = by_group.get(group, (math.inf, -math.inf))
        by_group[group] = (min(least, low), max(most, high))

    def ranges(self, name: str) -> Ranges:
        """The range over everything seen, then of each group, that over everything where a group saw nothing.

        A layer that was only called outside of any group has one range. Raises ValueError for a layer that
        was never called.
        """
        if (own := self._seen.get(name)) is None:
            raise ValueError(f"calibration never reached {name}: run more of the model, or leave it float")
        whole = (min(low for low, _ in own.values()), max(high for _, high in own.values()))
        if set(own) == {None}:  # such as text encoders, which no schedule reaches
            return [whole]
        return [whole, *(own.get(group, whole) for group in range(self.groups))]

    def all_ranges(self, plan: Plan) -> dict[str, Ranges]:
        """The ranges of every static layer of `plan`, by name. Errors as `ranges`."""
        return {name: self.ranges(name) for name in static_layers(plan)}


def static_layers(plan: Plan) -> list[str]:
    """The layers of a plan whose inputs need calibration."""
    return [name for name, scheme in plan.layers.items() if get_scheme(scheme).inputs == "static"]


@contextmanager
def watch(model: nn.Module, plan: Plan, groups: int | None = None) -> Iterator[MinMaxObserver]:
    """Watch the static layers of `plan` while the caller runs `model`; the observer is what comes out.

    groups: how many groups of timesteps there are, where hooks follow them (`quantize.timesteps`).
    """
    observer = MinMaxObserver(groups)
    with watch_inputs(model, static_layers(plan), observer.see):
        yield observer


@contextmanager
def watch_inputs(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Let `see` have the name and the input of every call of these layers while the caller runs `model`."""

    def watcher(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda _, args: see(name, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(watcher(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
