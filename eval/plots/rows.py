"""Plots of measured rows: bars with intervals, and quality against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import Measurement, Rows, read_lines, rows_of, tables_in
from bench.tables.korean import KOREAN as TABLE_WORDS
from eval.plots.style import COLOURS, WIDTH, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = {"share": ("followed", "colours"), "IoU": ("median IoU",)}  # quantities that share an axis
QUALITY = ("followed", "PSNR to full", "psnr", "PSNR to truth")  # the first that is there
COSTS = {"picture": ("seconds a picture", 1.0), "file": ("file, MiB", 2**20), "bytes": ("file, MiB", 2**20)}
LINE = 0.32  # inches of a bar
# As labels are read.
ENGLISH = {"images_per_second": "pictures a second", "psnr": "PSNR to truth", "lr": "learning rate"}
KOREAN = {
    "lr": "학습률",
    "followed": "윤곽을 따름", "colours": "두 색 모두", "median IoU": "IoU 중앙값",
    "PSNR to full": "전체 정밀도와의 PSNR", "psnr": "정답과의 PSNR", "PSNR to truth": "정답과의 PSNR",
    "seconds a picture": "그림 한 장, 초",
    "file, MiB": "파일, MiB", "95 % intervals": "95 % 구간", "step": "스텝", "loss": "손실",
    "images_per_second": "초당 그림",
}  # fmt: skip


def word(text: str, language: str) -> str:
    """A label in the language of the plot."""
    return (KOREAN if language == "ko" else ENGLISH).get(text, text)


def subject(name: str, language: str) -> str:
    """What the tables of this language call a row."""
    return TABLE_WORDS.get(name, name) if language == "ko" else name


def plot_results(folder: Path, out: Path, language: str) -> list[Path]:
    """All plots that the rows of `folder` can give; ValueError where there are no rows."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{folder} has no rows to plot: make results measures them")
    written = []
    for file in files:
        rows = rows_of(tables_in(read_lines(file))[0])
        rows = {name: row for name, row in rows.items() if " - " not in name}
        written += plot_bars(rows, out / f"{file.stem}-bars", language)
        written += plot_costs(rows, out / f"{file.stem}-cost", language)
    return written


def plot_bars(rows: Rows, path: Path, language: str) -> list[Path]:
    """A bar a subject and quantity, with its interval; nothing where no row has a share or an IoU."""
    from matplotlib import pyplot

    names = [name for group in BARS.values() for name in group]
    names = [name for name in names if any(name in row for row in rows.values())]
    if not names:
        return []
    height = 0.9 + LINE * len(rows) * len(names)
    figure, axes = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    thick = 0.8 / len(names)
    for number, quantity in enumerate(names):
        for place, row in enumerate(rows.values()):
            if quantity in row:
                _bar(axes, place + (number - (len(names) - 1) / 2) * thick, row[quantity], number, thick)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[i]) for i in range(len(names))]
    labels = [word(name, language) for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    axes.set_yticks(range(len(rows)), [subject(name, language) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.set_xlim(0, 1.16)  # room for the values behind the bars
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel(word("95 % intervals", language))
    axes.grid(axis="y", visible=False)
    return save(figure, path)


def _bar(axes: Axes, place: float, one: Measurement, number: int, thick: float) -> None:
    error = None if one.low is None else [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
    axes.barh(place, one.value, thick * 0.9, xerr=error, color=COLOURS[number], ecolor="#444444", capsize=2)
    end = one.value if one.high is None else max(one.value, one.high)
    axes.text(end + 0.012, place, f"{one.value:.3f}", va="center", fontsize=8)


def plot_costs(rows: Rows, path: Path, language: str) -> list[Path]:
    """Quality against seconds and against size, each point named, with the line of those that none beats."""
    from matplotlib import pyplot

    quality = next((name for name in QUALITY if _count(rows, name) > 1), None)
    costs = [name for name in COSTS if quality and _count(rows, name) > 1]
    if not costs:
        return []
    figure, all_axes = pyplot.subplots(
        len(costs), figsize=(WIDTH, 3.2 * len(costs)), layout="constrained", squeeze=False
    )
    for axes, cost in zip(all_axes[:, 0], costs, strict=True):
        label, unit = COSTS[cost]
        points = {
            n: (r[cost].value / unit, r[quality].value)
            for n, r in rows.items()
            if {cost, quality} <= r.keys()
        }
        best = pareto(points)
        axes.plot(*zip(*(points[name] for name in best), strict=True), color="#999999", zorder=1)
        for number, point in enumerate(points.values()):
            axes.scatter(*point, color=COLOURS[number % len(COLOURS)], zorder=2)
        _name_points(axes, points)
        axes.set_xlabel(word(label, language))
        axes.set_ylabel(word(quality, language))
    return save(figure, path)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Which points no other one beats: none is cheaper and as good; from the cheapest on."""
    best, names = float("-inf"), []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            names.append(name)
    return names


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """A name beside each point, moved up or down until it meets no other one."""
    axes.margins(x=0.25, y=0.2)
    figure = axes.figure
    figure.canvas.draw()
    taken: list = []
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        text = axes.annotate(name, point, xytext=(6, 3), textcoords="offset points", fontsize=8)
        for offset in _offsets():
            text.set_position((6, offset))
            box = text.get_window_extent(figure.canvas.get_renderer())
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _offsets() -> Sequence[int]:
    return [sign * step for step in range(3, 90, 10) for sign in (1, -1)]


def _count(rows: Rows, quantity: str) -> int:
    return sum(quantity in row for row in rows.values())
