"""Distances of sets: closed forms, float64 written out, sets against themselves."""

import numpy as np
import pytest
import torch

from eval.metrics import distances
from eval.metrics.distances import Gaussian, cmmd, fit, frechet, frechet_distance, kid


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_gaussians_along_the_axes_have_a_closed_form():
    means, deviations = (np.array([1.0, 2, 3]), np.zeros(3)), (np.array([1.0, 2, 0]), np.array([3.0, 2, 1]))
    first, second = (Gaussian(m, np.diag(s)) for m, s in zip(means, deviations, strict=True))
    expected = (1 + 4 + 9) + np.square(deviations[0] - deviations[1]).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=1e-12)


def test_gaussians_that_share_their_axes_have_a_closed_form(rng):
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    deviations = rng.uniform(0.1, 3, (2, 5))
    first, second = (Gaussian(np.zeros(5), np.diag(one) @ axes.T) for one in deviations)
    expected = np.square(deviations[0] - deviations[1]).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [5, 40], ids=["fewer pictures than features", "more"])
def test_a_fit_has_the_mean_and_covariance_of_its_rows(n, rng, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)
    rows = rng.normal(3, 2, (n, 12))
    found = fit(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0))
    np.testing.assert_allclose(found.factor.T @ found.factor, np.cov(rows, rowvar=False), atol=1e-12)


def test_the_frechet_distance_is_that_of_torchmetrics(rng):
    from torchmetrics.image.fid import _compute_fid

    first, second = rng.normal(size=(60, 8)), rng.normal(1, 2, (50, 8)) @ rng.normal(size=(8, 8))
    moments = (torch.from_numpy(m) for x in (first, second) for m in (x.mean(0), np.cov(x, rowvar=False)))
    assert frechet_distance(first, second).value == pytest.approx(float(_compute_fid(*moments)), rel=1e-9)


def test_it_is_symmetric_and_grows_with_the_distance(rng):
    rows = rng.normal(size=(50, 6))
    near, far = (frechet_distance(rows, rows + step).value for step in (0.1, 1.0))
    assert 0 < near < far
    assert frechet_distance(rows + 1, rows).value == pytest.approx(far, rel=1e-9)


@pytest.mark.parametrize("n", [4, 30])
@pytest.mark.parametrize("distance", [frechet_distance, cmmd])
def test_a_set_is_no_distance_from_itself(distance, n, rng):
    rows = rng.normal(size=(n, 10))
    assert distance(rows, rows).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("distance", [frechet_distance, kid, cmmd])
def test_plain_pictures_give_a_number(distance):
    rows = np.ones((30, 6))
    assert np.isfinite(distance(rows, rows).value)
    assert distance(rows, rows * 2).value > 0


def test_kid_is_its_formula_in_float64(rng):
    first, second = rng.normal(size=(30, 16)), rng.normal(0.5, 1, (30, 16))
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    own = sum((k.sum() - np.trace(k)) / (30 * 29) for k in (kernel(first, first), kernel(second, second)))
    found = kid(first, second)
    assert found.value == pytest.approx(own - 2 * kernel(first, second).mean(), rel=1e-9)
    assert found.interval is None


def test_kid_of_large_sets_is_a_mean_over_subsets_with_their_spread(rng, monkeypatch):
    monkeypatch.setattr(distances, "KID_SUBSET", 50)
    first, second = rng.normal(size=(300, 4)), rng.normal(0.5, 1, (200, 4))
    found, again, other = kid(first, second), kid(first, second), kid(first, second, seed=1)
    assert found == again != other
    assert found.interval.low < found.value < found.interval.high
    monkeypatch.setattr(distances, "KID_SUBSET", 1000)
    assert found.interval.holds(kid(first[:200], second).value)


def test_kid_of_a_set_against_itself_is_at_most_nothing(rng):
    rows = rng.normal(size=(200, 8))
    assert -0.2 < kid(rows, rows).value <= 0  # unbiased: the diagonal counts on one side only


def test_cmmd_is_its_formula_in_float64(rng, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 16)
    first, second = (x / np.linalg.norm(x, axis=1)[:, None] for x in rng.normal(size=(2, 40, 24)))
    second = second[:30]
    squares = lambda x, y: np.square(x[:, None] - y[None]).sum(axis=2)  # noqa: E731
    kernel = lambda x, y: np.exp(-squares(x, y) / (2 * 10.0**2)).mean()  # noqa: E731
    expected = 1000 * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))
    assert cmmd(first, second).value == pytest.approx(expected, rel=1e-9)
