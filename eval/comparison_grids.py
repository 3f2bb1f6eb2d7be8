"""Pictures that a comparison leaves: a grid of the first, and the worst of each metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.materials import MAPS, TRUTH

if TYPE_CHECKING:
    from eval.generate import Plan

FIRST, WORST = 8, 5
AMPLIFIED = 4  # a difference of a few levels is seen
CELL = 128
GREY = 128


def write_grid(plan: Plan, names: Sequence[str]) -> Path:
    """The first eight: input, map, truth, each model, and its difference from the first one, amplified."""
    from ldm.image import labelled_grid, write_png

    things = plan.things[:FIRST]
    read = _reader(plan)
    lines = {"input": [read_any(thing.image) for thing in things]}
    for kind in (MAPS, TRUTH):
        if (plan.data.out / kind).is_dir() and not (kind == MAPS and things[0].is_map):
            lines[kind] = [read(kind, thing.name) for thing in things]
    base = [read(names[0], thing.name) for thing in things]
    for name in names:
        made = [read(name, thing.name) for thing in things]
        lines[name] = made
        if name != names[0]:
            pairs = zip(made, base, strict=True)
            lines[f"{name}: difference x {AMPLIFIED}"] = [difference(*pair) for pair in pairs]
    grid = labelled_grid(list(lines.values()), list(lines), [thing.name for thing in things], cell=CELL)
    return write_png(plan.data.out / "grid.png", grid)


def write_worst(plan: Plan, metric: str, better: str, values: Mapping[str, np.ndarray]) -> Path:
    """The five worst pictures of each model by a metric, above each its value; truth beside where known."""
    from ldm.image import labelled_grid, write_png

    read, rows, labels = _reader(plan), [], []
    has_truth = (plan.data.out / TRUTH).is_dir()
    for name, scores in values.items():
        order = worst(scores, better)
        rows.append([read(name, plan.things[i].name) for i in order])
        labels.append(f"{name}: {' '.join(f'{scores[i]:.3g}' for i in order)}")
        if has_truth:
            rows.append([read(TRUTH, plan.things[i].name) for i in order])
            labels.append("truth")
    columns = max(map(len, rows))
    grid = labelled_grid(rows, labels, [f"{place + 1}." for place in range(columns)], cell=CELL)
    return write_png(plan.data.out / f"worst-{metric}.png", grid)


def worst(values: np.ndarray, better: str) -> list[int]:
    """Places of the five worst values, the worst first; NaN are none."""
    signed = values if better == "higher" else -values
    order = np.argsort(signed, kind="stable")
    return [int(i) for i in order if not np.isnan(values[i])][:WORST]


def difference(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Grey where two pictures, uint8 [H W 3], are equal; else four times by how much, lighter or darker."""
    found = GREY + AMPLIFIED * (image.astype(np.int32) - other)
    return found.clip(0, 255).astype(np.uint8)


def read_any(path: Path) -> np.ndarray:
    """uint8 [H W 3] of a picture of any kind."""
    from annotator.util import HWC3
    from ldm.image import read_image

    return HWC3(read_image(path))


def _reader(plan: Plan) -> Callable[[str, str], np.ndarray]:
    def read(folder: str, name: str) -> np.ndarray:
        (path,) = (plan.data.out / folder).glob(f"{name}.*")
        return read_any(path)

    return read
