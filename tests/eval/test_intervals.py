"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from eval.intervals import NO_DIFFERENCE, Interval, bootstrap, difference_in_words, paired, wilson

SIMULATED = 2000
CONFIDENCE, TOLERANCE = 0.95, 0.02


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_shares_have_wilsons_interval(hits, n, low, high):
    found = wilson(hits, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


def test_of_nothing_everything_is_possible():
    assert wilson(0, 0) == Interval(0, 1)
    with pytest.raises(ValueError, match="one value at least"):
        bootstrap(np.array([]))


def test_wilsons_interval_holds_the_true_share_95_times_of_100():
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.05, 0.95, SIMULATED)
    held = [wilson(rng.binomial(200, share), 200).holds(share) for share in shares]
    assert np.mean(held) == pytest.approx(CONFIDENCE, abs=TOLERANCE)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_bootstrap_holds_the_truth_95_times_of_100(statistic):
    rng = np.random.default_rng(2)
    samples = rng.normal(3.0, 1.0, (SIMULATED, 99))
    held = [bootstrap(s, statistic, seed, draws=300).holds(3.0) for seed, s in enumerate(samples)]
    assert np.mean(held) == pytest.approx(CONFIDENCE, abs=TOLERANCE)


def test_the_bootstrap_of_shares_holds_the_truth_95_times_of_100():
    rng = np.random.default_rng(3)
    shares = rng.uniform(0.2, 0.8, SIMULATED)
    drawn = [(rng.random(200) < share).astype(float) for share in shares]
    held = [bootstrap(s, "mean", k, draws=300).holds(shares[k]) for k, s in enumerate(drawn)]
    assert np.mean(held) == pytest.approx(CONFIDENCE, abs=TOLERANCE)


def test_the_paired_bootstrap_holds_a_difference_95_times_of_100():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 5, (SIMULATED, 80))
    first, second = hard + rng.normal(0.5, 1, hard.shape), hard + rng.normal(0, 1, hard.shape)
    held = [
        paired(a, b, seed=k, draws=300).holds(0.5) for k, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    assert np.mean(held) == pytest.approx(CONFIDENCE, abs=TOLERANCE)


def test_what_is_hard_for_both_falls_out_of_a_difference():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 50, 100)
    better, worse = hard + 1 + rng.normal(0, 0.1, 100), hard
    assert paired(better, worse).low > 0.9
    assert bootstrap(better).high - bootstrap(better).low > 10


def test_the_same_values_give_the_same_interval_and_more_of_them_a_shorter_one():
    values = np.random.default_rng(6).normal(size=400)
    whole, part = bootstrap(values), bootstrap(values[:100])
    assert whole == bootstrap(values)
    assert whole != bootstrap(values, seed=1)
    assert whole.high - whole.low < part.high - part.low


def test_equal_pictures_have_an_infinite_psnr_and_no_difference():
    equal = np.full(9, np.inf)
    assert bootstrap(equal, "median") == Interval(np.inf, np.inf)
    assert paired(equal, equal, "median") == Interval(0, 0)


def test_models_are_compared_on_the_same_pictures():
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired(np.zeros(3), np.zeros(2))


def test_a_difference_that_may_be_none_is_said_so():
    assert difference_in_words(0.1, Interval(-0.1, 0.3)) == NO_DIFFERENCE
    assert difference_in_words(0.12, Interval(0.05, 0.19), "{:+.2f}") == "+0.12 [+0.05, +0.19]"
    assert difference_in_words(-1.0, None, "{:+.1f}") == "-1.0"
