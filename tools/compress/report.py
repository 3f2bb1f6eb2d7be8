"""The table of what a compressed file saves and costs, part by part: numbers, bytes, error of the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from common.atomic import MIB
from tools.compress.calibration import TEXT_PART

TOTAL = "total"  # no part: the sum of all
# First component of tensors' names -> the part for people.
LABELS = {
    "control_model": "control branch",
    "model": "U-Net",
    "first_stage_model": "autoencoder",
    TEXT_PART: "text encoder",
    TOTAL: TOTAL,
}
Sizes = Mapping[str, tuple[int, int]]  # part -> how many numbers, how many bytes


def sizes_of(tensors: Iterable[tuple[str, Any]]) -> Sizes:
    """Numbers and bytes of each part of a state dict, and of all."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors:
        for part in (name.split(".")[0], TOTAL):
            numbers, size = sizes.get(part, (0, 0))
            sizes[part] = (numbers + math.prod(tensor.shape), size + tensor.nbytes)
    return sizes


def size_table(before: Sizes, after: Sizes, errors: Mapping[str, float] | None = None) -> str:
    """A line for each part. errors: signal over noise in dB, in place of how many numbers are left."""
    head = ("part", "numbers", "MiB", "MiB after", "numbers after" if errors is None else "signal/noise dB")
    lines = [head]
    for part in (*(part for part in LABELS if part in before and part != TOTAL), TOTAL):
        last = f"{after[part][0]:,}" if errors is None else _in_db(errors.get(part))
        mib = (f"{sizes[part][1] / MIB:.2f}" for sizes in (before, after))
        lines.append((LABELS[part], f"{before[part][0]:,}", *mib, last))
    return "\n".join("{:<14}{:>16}{:>11}{:>11}{:>17}".format(*line) for line in lines)


def _in_db(error: float | None) -> str:
    if error is None:
        return "-"
    return "exact" if math.isinf(error) else f"{error:.1f}"
