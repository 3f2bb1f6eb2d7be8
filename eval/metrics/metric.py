"""What a metric is: a feature computed of each picture by itself, and a number made of all of them.

Features cost the time and are kept (`eval.cache`); the number is made anew from them each time. Metrics of
single pictures (PSNR, CLIP score, control fidelity) have a value a picture and an interval over pictures;
metrics of sets (FID, KID) compare all features of one side with those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from eval.intervals import Interval, Statistic, bootstrap, minus, paired

Role = Literal["truth", "map", "prompt"]  # what a picture may be compared with
Better = Literal["higher", "lower"]
Control = tuple[str, Mapping[str, Any]]  # the detector or control of a map, and its params


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [H W 3], and what was asked for; truth and map as the picture, if there are any."""

    image: np.ndarray
    truth: np.ndarray | None = None
    map: np.ndarray | None = None
    prompt: str | None = None
    control: Control | None = None


@dataclass(frozen=True)
class Tools:
    """What features are computed with. weights: file or folder of the feature's network, None without one."""

    weights: Path | None = None
    device: str = "auto"


Compute = Callable[[Sequence[Picture]], np.ndarray]  # -> float [n size]


@dataclass(frozen=True)
class Feature:
    """What is computed of each picture: `size` numbers, stored as `dtype`.

    open: makes the function, with its network on its device. needs: beside the picture. network: its name in
    `eval.metrics.weights`, None where nothing has to be fetched. notice: a warning about these prompts.
    usable: why pictures of these controls cannot be measured.
    """

    name: str
    size: int
    open: Callable[[Tools], Compute]
    needs: tuple[Role, ...] = ()
    network: str | None = None
    dtype: str = "<f8"
    notice: Callable[[Tools, Sequence[str]], str | None] | None = None
    usable: Callable[[Iterable[Control | None]], str | None] | None = None


class Rows(Protocol):
    """Features of many pictures in order, in memory or not; taken by slice or by places: float [m size]."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Score:
    """A metric's number, as it is printed; value None where there is none, and why.

    label: with what a reader must know, such as n and the way of resizing. low, high: of the 95 % interval,
    None where none is known.
    """

    metric: str
    label: str
    value: float | None
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    why: str = ""

    def with_interval(self, interval: Interval | None) -> Score:
        """The same with its interval."""
        return replace(self, low=interval.low, high=interval.high) if interval else self


@dataclass(frozen=True)
class PictureMetric:
    """The mean or median of one number a picture, `column` of its feature."""

    title: str
    unit: str
    better: Better
    feature: Feature
    statistic: Statistic = "mean"
    column: int = 0

    def none(self, name: str, why: str) -> Score:
        """No number."""
        return Score(name, f"{self.statistic} {self.title}", None, self.unit, 0, why=why)

    def values(self, rows: Rows) -> np.ndarray:
        """One number a picture, float64 [n]."""
        return np.asarray(rows[:])[:, self.column].astype(np.float64)

    def score(self, name: str, values: np.ndarray, seed: int = 0) -> Score:
        """The mean or median of `values` with its interval; NaN are pictures that have none."""
        values = values[~np.isnan(values)]
        if not len(values):
            return self.none(name, "no picture has one: its control is measured otherwise")
        value = float(getattr(np, self.statistic)(values))
        found = Score(name, f"{self.statistic} {self.title}", value, self.unit, len(values))
        return found.with_interval(bootstrap(values, self.statistic, seed))

    def difference(self, name: str, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Score:
        """Of two models on the same pictures, with the paired interval."""
        there = ~(np.isnan(first) | np.isnan(second))
        first, second = first[there], second[there]
        if not len(first):
            return self.none(name, "no picture has one: its control is measured otherwise")
        of = getattr(np, self.statistic)
        label = f"difference of the {self.statistic} {self.title}"
        found = Score(name, label, float(minus(of(first), of(second))), self.unit, len(first))
        return found.with_interval(paired(first, second, self.statistic, seed))


@dataclass(frozen=True)
class Distance:
    """Of one set from another, and its spread where its definition has one."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class SetMetric:
    """A distance of two sets of features.

    floor: fewer pictures a side give a number that means nothing, `smaller` names metrics that stand them.
    resize: how pictures come to the network's size. draws: of the paired bootstrap, 0 where a draw takes too
    long.
    """

    title: str
    unit: str
    better: Better
    feature: Feature
    distance: Callable[[Rows, Rows, int], Distance]
    resize: str
    floor: int = 2
    smaller: tuple[str, ...] = ()
    draws: int = 0

    def label(self, n: int) -> str:
        """Such as `FID (TF1 bilinear, n = 5,000)`; says where n is too small."""
        biased = "biased, " if n < self.floor else ""
        return f"{self.title} ({self.resize}, {biased}n = {n:,})"

    def none(self, name: str, why: str) -> Score:
        """No number."""
        return Score(name, self.title, None, self.unit, 0, why=why)

    def score(self, name: str, rows: Rows, truth: Rows, seed: int = 0) -> Score:
        """The distance of the pictures from the truth; n is that of the smaller side."""
        n = min(len(rows), len(truth))
        found = self.distance(rows, truth, seed)
        return Score(name, self.label(n), found.value, self.unit, n).with_interval(found.interval)


Metric = PictureMetric | SetMetric
