"""Distances of two sets of features: Fréchet's, KID's and CMMD's, in float64 and in bounded memory.

Fréchet distance of two Gaussians: Dowson & Landau 1982; of Inception features it is FID (Heusel et al. 2017).
KID: Bińkowski et al. 2018, the unbiased estimator of a cubic kernel, so that a set against itself is a little
below 0. CMMD: Jayasumana et al. 2024, the biased estimator of a Gaussian kernel, times 1000.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.intervals import Interval, Z
from eval.metrics.metric import Distance, Rows

BLOCK = 2048  # rows at once
KID_SUBSETS, KID_SUBSET = 100, 1000  # as published
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # as published


@dataclass(frozen=True)
class Gaussian:
    """mean: [d]; factor: [k d] with covariance = factor^T factor, as few rows as that takes."""

    mean: np.ndarray
    factor: np.ndarray


def fit(rows: Rows) -> Gaussian:
    """The Gaussian of two rows or more, its covariance unbiased; in two passes, as one pass loses digits."""
    mean = sum(block.sum(axis=0) for block in _blocks(rows)) / len(rows)
    if len(rows) <= len(mean):  # the rows themselves are a factor, and an exact one where C is singular
        return Gaussian(mean, (np.asarray(rows[:], np.float64) - mean) / np.sqrt(len(rows) - 1))
    centred = (block - mean for block in _blocks(rows))
    return Gaussian(mean, _factor(sum(block.T @ block for block in centred) / (len(rows) - 1)))


def frechet(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    With C = F^T F the trace of the root is the sum of the singular values of F1 F2^T. The usual way,
    eigenvalues of C1 C2, takes roots of their rounding errors: noise that grows where fewer pictures than
    features make C singular, of the fifth digit in FID of a hundred pictures.
    """
    distance = sum(np.square(x).sum() for x in (first.mean - second.mean, first.factor, second.factor))
    return float(distance - 2 * np.linalg.svd(first.factor @ second.factor.T, compute_uv=False).sum())


def frechet_distance(first: Rows, second: Rows, seed: int = 0) -> Distance:
    """Of the Gaussians that fit two sets."""
    return Distance(frechet(fit(first), fit(second)))


def kid(first: Rows, second: Rows, seed: int = 0) -> Distance:
    """The mean over random subsets, between mean -+ 1.96 standard deviations over them.

    Subsets as large as a set are all of it: then there is one estimate, and no spread.
    """
    import torch
    from torchmetrics.image.kid import poly_mmd

    size = min(KID_SUBSET, len(first), len(second))
    count = 1 if size == len(first) == len(second) else KID_SUBSETS
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        parts = (rows[np.sort(rng.choice(len(rows), size, replace=False))] for rows in (second, first))
        found.append(float(poly_mmd(*(torch.from_numpy(part).double() for part in parts))))
    mean, spread = float(np.mean(found)), Z * float(np.std(found))
    return Distance(mean, Interval(mean - spread, mean + spread) if count > 1 else None)


def cmmd(first: Rows, second: Rows, seed: int = 0) -> Distance:
    """1000 times the squared maximum mean discrepancy; features have length 1."""
    own = _mean_kernel(first, first) + _mean_kernel(second, second)
    return Distance(CMMD_SCALE * (own - 2 * _mean_kernel(first, second)))


def _mean_kernel(first: Rows, second: Rows) -> float:
    total = 0.0
    for one in _blocks(first):
        for other in _blocks(second):
            squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
            total += np.exp(-(squares - 2 * one @ other.T) / (2 * CMMD_SIGMA**2)).sum()
    return total / (len(first) * len(second))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """[d d]; by Cholesky, or by eigenvectors where plain or equal pictures leave no full rank."""
    try:
        return np.linalg.cholesky(covariance).T
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.sqrt(values.clip(0))[:, None] * vectors.T


def _blocks(rows: Rows) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield np.asarray(rows[start : start + BLOCK], np.float64)
