"""Metrics of pictures: features computed once, batch by batch, in one process or several, then numbers.

Features are kept in `cache` by the content of what they were computed from: what was finished before a run
was stopped, and what another run has computed, is found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.flags import flag
from common.shell import say
from eval.cache import Store, key_of
from eval.intervals import percentiles, resamples
from eval.metrics.metric import Metric, PictureMetric, Rows, Score, SetMetric, Tools
from eval.metrics.registry import METRICS, check_names
from eval.metrics.weights import METRIC_WEIGHTS, NETWORKS, identity
from eval.pictures import NOTHING, Case, Pictures
from eval.processes import spread

CACHE = Path("outputs/eval")


@dataclass(frozen=True)
class ScoreSettings:
    """How metrics are computed."""

    metric_weights: Path = flag(METRIC_WEIGHTS, "folder of the metrics' networks")
    cache: Path = flag(CACHE, "folder where features are kept")
    device: str = flag("auto", "auto, cpu or cuda")
    batch: int = flag(16, "pictures at once")
    processes: int = flag(1, "share the work out to so many, with a GPU each where there are as many")
    allow_small: bool = flag(False, "print biased numbers of too few pictures")
    seed: int = flag(0, "of random subsets and intervals")


class Scorer:
    """Computes scores; ValueError and OSError in one sentence wherever a user can help."""

    def __init__(self, settings: ScoreSettings | None = None) -> None:
        self._settings = settings or ScoreSettings()
        self._identities: dict[str, str] = {}

    def scores(self, pictures: Pictures, names: Sequence[str]) -> list[Score]:
        """One score a metric, in order; its value is None where `why_not` says so."""
        check_names(names)
        return [self._score(pictures, name) for name in names]

    def why_not(self, pictures: Pictures, name: str) -> str | None:
        """Why a metric of these pictures has no number, in one line; None where it has."""
        return self.unfit(pictures, name) or self.unready(pictures, name)

    def unfit(self, pictures: Pictures, name: str) -> str | None:
        """What keeps these pictures from being measured so, whatever is installed."""
        metric = METRICS[name]
        return _lacking(pictures, metric) or self._too_few(pictures, metric)

    def unready(self, pictures: Pictures, name: str) -> str | None:
        """What a metric of these pictures needs and is not here: a network or a detector."""
        feature = METRICS[name].feature
        if feature.usable and (why := feature.usable(case.control for case in pictures.cases)):
            return why
        network, folder = NETWORKS.get(feature.network or ""), self._settings.metric_weights
        return f"{network.names[0]} is not in {folder}" if network and not network.find(folder) else None

    def values(self, pictures: Pictures, name: str) -> np.ndarray:
        """One number a picture of a metric of single pictures, float64 [n], in the order of `stems`."""
        check_names([name])
        metric = METRICS[name]
        if not isinstance(metric, PictureMetric):
            raise ValueError(f"{name} has no value a picture: it compares sets")
        if why := self.why_not(pictures, name):
            raise ValueError(f"{name}: {why}")
        return metric.values(self._rows(name, pictures.cases))

    def difference(self, first: Pictures, second: Pictures, name: str) -> Score:
        """A metric of `first` less that of `second`, which show the same: pictures pair by name.

        The interval is that of the paired bootstrap, None where a draw would take too long. Sets are compared
        with the truths of `first`.
        """
        check_names([name])
        metric = METRICS[name]
        if first.stems != second.stems:
            words = f"{len(first.stems)} and {len(second.stems)} pictures of other names"
            raise ValueError(f"{words}: compare models on the same ones")
        if why := self.why_not(first, name) or self.why_not(second, name):
            return metric.none(name, why)
        seed = self._settings.seed
        if isinstance(metric, PictureMetric):
            return metric.difference(name, self.values(first, name), self.values(second, name), seed)
        sides = (self._rows(name, side) for side in (first.cases, second.cases, first.truths))
        return _set_difference(name, metric, *sides, seed)

    def _score(self, pictures: Pictures, name: str) -> Score:
        metric, seed = METRICS[name], self._settings.seed
        if why := self.why_not(pictures, name):
            return metric.none(name, why)
        rows = self._rows(name, pictures.cases)
        if isinstance(metric, PictureMetric):
            return metric.score(name, metric.values(rows), seed)
        return metric.score(name, rows, self._rows(name, pictures.truths), seed)

    def _too_few(self, pictures: Pictures, metric: Metric) -> str | None:
        if isinstance(metric, PictureMetric):
            return None
        n, floor = min(len(pictures.cases), len(pictures.truths)), metric.floor
        if n < 2:
            return "a set needs 2 pictures or more a side"
        if n >= floor or self._settings.allow_small:
            return None
        instead = f"take {' or '.join(metric.smaller)}, or " if metric.smaller else ""
        words = f"{metric.title} means nothing with fewer than {floor:,} pictures a side, here are {n:,}"
        return f"{words}: {instead}--allow-small to print it all the same"

    def _rows(self, name: str, cases: Sequence[Case]) -> Rows:
        """The features of a metric, computed where they are not kept yet."""
        feature = METRICS[name].feature
        tools, store = self._open(name)
        keys = [case.key(feature.needs) for case in cases]
        if feature.notice and (warning := feature.notice(tools, [case.prompt for case in cases])):
            say(warning)
        missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in store}
        if missing:
            job = _Job(name, tools, store.folder, tuple(missing.items()), self._settings.batch)
            spread(self._settings.processes, fill, job)
            store.refresh()
        return store.rows(keys)

    def _open(self, name: str) -> tuple[Tools, Store]:
        """The network of a metric and what was computed with it, with this torch, on this kind of device."""
        import torch

        from ldm.util import pick_device

        feature, settings = METRICS[name].feature, self._settings
        network = NETWORKS[feature.network] if feature.network else None
        place = network.find(settings.metric_weights) if network else None
        if network and feature.network not in self._identities:
            self._identities[feature.network] = identity(network, place)
        known = self._identities.get(feature.network or "", "")
        key = key_of([known, torch.__version__, pick_device(settings.device).type])
        folder = settings.cache / f"{feature.name}-{key.hex()[:16]}"
        return Tools(place, settings.device), Store(folder, feature.size, feature.dtype)


@dataclass(frozen=True)
class _Job:
    """Features that are to be computed; picklable, as other processes get it."""

    metric: str
    tools: Tools
    folder: Path
    missing: tuple[tuple[bytes, Case], ...]
    batch: int


def fill(rank: int, world: int, job: _Job) -> None:
    """Compute every `world`th batch of what is missing, from the `rank`th on, and keep each at once."""
    from tqdm import tqdm

    feature = METRICS[job.metric].feature
    writer = Store(job.folder, feature.size, feature.dtype).writer()
    batches = [job.missing[start : start + job.batch] for start in range(0, len(job.missing), job.batch)]
    mine = batches[rank::world]
    if not mine:
        return
    compute = feature.open(job.tools)
    # None: on a terminal alone
    for batch in tqdm(mine, feature.name, unit="batch", disable=True if rank else None):
        keys, cases = zip(*batch, strict=True)
        writer.add(keys, compute([case.read(feature.needs) for case in cases]))


def applicable(pictures: Pictures) -> list[str]:
    """The metrics for which these pictures have all that is compared."""
    sets = bool(pictures.truths)
    return [
        name
        for name, metric in METRICS.items()
        if (sets or isinstance(metric, PictureMetric))
        and not set(metric.feature.needs) & pictures.lacking.keys()
    ]


def _lacking(pictures: Pictures, metric: Metric) -> str | None:
    if isinstance(metric, SetMetric) and not pictures.truths:
        return NOTHING["truth"]
    return next((pictures.lacking[need] for need in metric.feature.needs if need in pictures.lacking), None)


def _set_difference(name: str, metric: SetMetric, first: Rows, second: Rows, truth: Rows, seed: int) -> Score:
    def between(one: Rows, other: Rows) -> float:
        return metric.distance(one, truth, seed).value - metric.distance(other, truth, seed).value

    n = min(len(first), len(truth))
    found = Score(name, f"difference of {metric.label(n)}", between(first, second), metric.unit, n)
    if not metric.draws:
        return found
    ones, others, truth = first[:], second[:], truth[:]
    indices = (index for block in resamples(len(ones), seed, metric.draws) for index in block)
    return found.with_interval(percentiles([between(ones[index], others[index]) for index in indices]))
