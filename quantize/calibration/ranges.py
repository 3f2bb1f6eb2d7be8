"""Ranges of layers' inputs from a few runs of the float model, apart for each group of timesteps.

Hooks watch the layers that a plan makes static. Of each group they keep the exact ends and a histogram, from
which a rule of `RANGES` picks the range: few outliers would otherwise set everyone's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.activations import dequantize_uint8, qparams_of, quantize_uint8, range_of
from quantize.arithmetic import TINY, check_finite
from quantize.schemes import get_scheme
from quantize.selection import Plan
from quantize.spec import Ranges
from quantize.timesteps import current_group

DEFAULT_RULE = "minmax"  # a few pictures show few of the large values to come: leaving out any cost more
BINS = 2048  # over [-reach, reach]; one of 255 steps is four bins or more
TAIL = 1e-4  # of the values that `percentile` leaves out at either end
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the exact ends: `mse` takes the best pair

Range = tuple[float, float]


class Watched:
    """What was seen of one layer's inputs in one group of timesteps: exact ends, and how often what came.

    counts: [BINS] over [-reach, reach]; reach is a power of two, so that it doubles by adding bins in pairs.
    """

    def __init__(self) -> None:
        self.ends: Range = (math.inf, -math.inf)
        self.reach = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def see(self, x: Tensor, what: str = "a layer's input") -> None:
        """Take x, called `what`, into account. ValueError for NaN and infinity."""
        if not x.numel():
            return
        values = x.detach().float()
        low, high = range_of(values)
        if not (math.isfinite(low) and math.isfinite(high)):
            check_finite(values, what)
        self.ends = (min(self.ends[0], low), max(self.ends[1], high))
        self._widen(max(abs(low), abs(high)))
        self.counts += torch.histc(values.cpu(), BINS, -self.reach, self.reach)

    @property
    def centres(self) -> Tensor:
        """The middle of each bin, float32 [BINS]."""
        return (torch.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach

    def _widen(self, peak: float) -> None:
        peak = max(peak, TINY)
        if self.reach == 0.0:
            self.reach = 2.0 ** math.ceil(math.log2(peak))
        while self.reach < peak:
            pairs = self.counts.view(-1, 2).sum(dim=1)
            self.counts = F.pad(pairs, (BINS // 4, BINS // 4))
            self.reach *= 2


class Calibration:
    """Ranges by layer; `groups` groups of timesteps, or None where the schedule plays no part."""

    def __init__(self, groups: int | None = None) -> None:
        self.groups = groups
        self._seen: dict[str, dict[int | None, Watched]] = {}

    def see(self, name: str, x: Tensor) -> None:
        """Take the input x of layer `name` into account, in the current group of timesteps."""
        by_group = self._seen.setdefault(name, {})
        group = current_group() if self.groups else None
        by_group.setdefault(group, Watched()).see(x, f"an input of {name}")

    def ranges(self, name: str, rule: str = DEFAULT_RULE) -> Ranges:
        """The range over everything seen, then of each group, that over everything where a group saw nothing.

        A layer that was only called outside of any group has one range. Raises ValueError for a layer that
        was never called, or an unknown rule.
        """
        if rule not in RANGES:
            raise ValueError(f"unknown rule of ranges {rule!r}: use one of {', '.join(RANGES)}")
        seen = {group: watched for group, watched in self._seen.get(name, {}).items() if watched.reach}
        if not seen:
            raise ValueError(f"calibration never reached {name}: run more of the model, or leave it float")
        own = {group: RANGES[rule](watched) for group, watched in seen.items()}
        whole = (min(low for low, _ in own.values()), max(high for _, high in own.values()))
        if set(own) == {None}:
            return [whole]
        return [whole, *(own.get(group, whole) for group in range(self.groups))]

    def all_ranges(self, plan: Plan, rule: str = DEFAULT_RULE) -> dict[str, Ranges]:
        """The ranges of every static layer of `plan`, by name. Errors as `ranges`."""
        return {name: self.ranges(name, rule) for name in static_layers(plan)}


def static_layers(plan: Plan) -> list[str]:
    """The layers of a plan whose inputs need calibration."""
    return [name for name, scheme in plan.layers.items() if get_scheme(scheme).inputs == "static"]


@contextmanager
def watch(model: nn.Module, plan: Plan, groups: int | None = None) -> Iterator[Calibration]:
    """Watch the static layers of `plan` while the caller runs `model`; the calibration is what comes out.

    groups: how many groups of timesteps there are, where hooks follow them (`quantize.timesteps`).
    """
    calibration = Calibration(groups)
    with watch_inputs(model, static_layers(plan), calibration.see):
        yield calibration


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


def minmax(watched: Watched) -> Range:
    """Everything that was seen."""
    return watched.ends


def percentile(watched: Watched) -> Range:
    """Without the `TAIL` of the values at either end."""
    shares = watched.counts.cumsum(0) / watched.counts.sum()
    inside = (shares > TAIL) & (shares < 1 - TAIL)
    kept = watched.centres[inside]
    if not len(kept):
        return watched.ends
    low, high = watched.ends
    return max(low, kept[0].item()), min(high, kept[-1].item())


def mse(watched: Watched) -> Range:
    """The ends whose bytes lose least, by squared error; the exact ends are among the candidates."""
    seen = watched.counts > 0
    values, counts = watched.centres[seen], watched.counts[seen]
    low, high = min(watched.ends[0], 0.0), max(watched.ends[1], 0.0)  # bytes have a zero in any case
    best, least = (low, high), math.inf
    for below in SHARES if low else (1.0,):
        for above in SHARES if high else (1.0,):
            qparams = qparams_of(low * below, high * above)
            lost = dequantize_uint8(quantize_uint8(values, qparams), qparams) - values
            loss = (lost.double().square() * counts).sum().item()
            if loss < least:
                best, least = (low * below, high * above), loss
    return best


RANGES: Mapping[str, Callable[[Watched], Range]] = {"minmax": minmax, "percentile": percentile, "mse": mse}
