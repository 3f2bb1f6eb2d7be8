"""The curves of a training run: what its logger wrote as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from eval.plots.rows import word
from eval.plots.style import COLOURS, WIDTH, save

LOG = "metrics.csv"  # Lightning's name
SHOWN = ("loss", "lr", "images_per_second")
SMOOTH = 0.05  # share of the run that a point is averaged over


def find_log(folder: Path) -> Path:
    """The newest log below a run's folder; FileNotFoundError where there is none."""
    logs = sorted(folder.rglob(LOG), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise FileNotFoundError(f"{folder} has no {LOG}: train with --report-to csv")
    return logs[-1]


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) by the name of what was logged. ValueError for a file without steps."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                step = float(row["step"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path} is no log of a training run: it has rows without a step") from None
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    curves.setdefault(name, []).append((step, float(value)))
    return curves


def plot_run(folder: Path, out: Path, language: str) -> list[Path]:
    """Loss, learning rate and speed of a run over its steps."""
    from matplotlib import pyplot

    curves = read_curves(find_log(folder))
    names = [name for name in SHOWN if name in curves] or list(curves)[: len(SHOWN)]
    if not names:
        raise ValueError(f"{folder}: nothing was logged yet")
    figure, all_axes = pyplot.subplots(
        len(names), figsize=(WIDTH, 2.2 * len(names)), layout="constrained", sharex=True, squeeze=False
    )
    for number, (axes, name) in enumerate(zip(all_axes[:, 0], names, strict=True)):
        steps, values = zip(*curves[name], strict=True)
        axes.plot(steps, values, color=COLOURS[number], alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smoothed(values), color=COLOURS[number])
        axes.set_ylabel(word(name, language))
    all_axes[-1, 0].set_xlabel(word("step", language))
    figure.align_ylabels()
    return save(figure, out / "curves")


def _smoothed(values: tuple[float, ...]) -> list[float]:
    reach = int(SMOOTH * len(values))
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
