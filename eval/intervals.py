"""How sure a number is: where the true share, mean or difference lies, 95 times of 100.

Wilson 1927 for shares; for means and medians Efron's bootstrap (1979) over pictures, by percentiles. Draws
are seeded, so that the same values give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Statistic = Literal["mean", "median"]

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
DRAWS = 2000  # the ends of an interval then move by about a fiftieth of its length from seed to seed
DRAWN_AT_ONCE = 1_000_000  # numbers: bounds the memory, however many pictures there are
STATISTICS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}
NO_DIFFERENCE = "no measurable difference"


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


def wilson(hits: float, n: int) -> Interval:
    """Of a share of `hits` of `n`; all of [0, 1] where n is 0."""
    if n < 1:
        return Interval(0.0, 1.0)
    p = hits / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Interval(float(middle - half), float(middle + half))


def bootstrap(
    values: np.ndarray, statistic: Statistic = "mean", seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Of the mean or median of the population that `values`, float [n], were drawn from."""
    of = STATISTICS[statistic]
    return percentiles([of(values[index], axis=1) for index in resamples(len(values), seed, draws)])


def paired(
    first: np.ndarray, second: np.ndarray, statistic: Statistic = "mean", seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Of statistic(first) - statistic(second), float [n] each, where place i is one picture in both.

    Each draw takes the same pictures of both, so that what makes a picture hard for both falls out.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values: give both models the same pictures")
    of, indices = STATISTICS[statistic], resamples(len(first), seed, draws)
    return percentiles([minus(of(first[i], axis=1), of(second[i], axis=1)) for i in indices])


def minus(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first - second, where two infinite values that are the same (PSNR of equal pictures) differ by 0."""
    with np.errstate(invalid="ignore"):
        return np.where(first == second, 0.0, first - second)


def difference_in_words(difference: float, interval: Interval | None, form: str = "{:+.3f}") -> str:
    """Such as `+0.120 [+0.050, +0.190]`, or that none can be measured where the interval holds 0."""
    if interval is None:
        return form.format(difference)
    if interval.holds(0):
        return NO_DIFFERENCE
    return f"{form.format(difference)} [{form.format(interval.low)}, {form.format(interval.high)}]"


def resamples(n: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Places drawn with replacement: int [m n], `draws` rows in all."""
    if n < 1:
        raise ValueError("an interval needs one value at least")
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, draws, rows):
        yield rng.integers(n, size=(min(rows, draws - start), n))


def percentiles(drawn: Sequence[np.ndarray | float]) -> Interval:
    """What holds 95 of 100 draws in the middle."""
    tail = 100 * (1 - CONFIDENCE) / 2
    # Nearest, as between infinities there is nothing to interpolate.
    low, high = np.percentile(np.hstack(drawn), [tail, 100 - tail], method="nearest")
    return Interval(float(low), float(high))
