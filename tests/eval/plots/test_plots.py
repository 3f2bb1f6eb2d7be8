"""Plots are PNG and SVG of README width; the front holds what none beats; mistakes are a sentence."""

import numpy as np
import pytest
from PIL import Image

import visualize
from bench.results import Measurement, ResultsFile, by_subject
from eval.plots import rows as plots
from eval.plots import style
from eval.plots.curves import plot_run
from eval.plots.rows import pareto, plot_bars, plot_costs
from ldm.image import write_png

ORIGIN = {
    "bench": "b", "setting": {}, "command": "python -m b", "commit": None, "date": "2026-01-31",
    "device": {"name": "c", "threads": 1}, "versions": {}, "files": {},
}  # fmt: skip
ROWS = by_subject(
    Measurement(name, quantity, value, unit, 9, low, high)
    for name, share, seconds in (("full", 0.9, 2.0), ("lite", 0.8, 1.0), ("slow", 0.7, 3.0))
    for quantity, value, unit, low, high in (
        ("followed", share, "share", share - 0.1, share + 0.05),
        ("picture", seconds, "s", None, None),
    )
)


def width(path):
    with Image.open(path) as image:
        return image.width


@pytest.mark.parametrize("plot", [plot_bars, plot_costs])
def test_rows_become_a_png_of_900_pixels_and_an_svg(tmp_path, plot):
    with style.styled("en"):
        png, svg = plot(ROWS, tmp_path / "plot", "en")
    assert width(png) == 900
    assert "<svg" in svg.read_text()


def test_rows_without_quality_give_no_plot(tmp_path):
    rows = by_subject([Measurement("a", "wall", 1.0, "s")])
    assert plot_bars(rows, tmp_path / "a", "en") == plot_costs(rows, tmp_path / "b", "en") == []


def test_the_front_holds_what_no_other_beats():
    points = {"cheap": (1.0, 5.0), "dear": (3.0, 9.0), "beaten": (2.0, 4.0), "same price": (1.0, 3.0)}
    assert pareto(points) == ["cheap", "dear"]


def test_names_of_near_points_do_not_lie_on_each_other(tmp_path, monkeypatch):
    boxes = []
    real = plots._name_points

    def watched(axes, points):
        real(axes, points)
        boxes.extend(text.get_window_extent() for text in axes.texts)

    monkeypatch.setattr(plots, "_name_points", watched)
    near = by_subject(
        Measurement(f"model {i}", quantity, 1 + i * 1e-4, "s")
        for i in range(5)
        for quantity in ("followed", "picture")
    )
    with style.styled("en"):
        plot_costs(near, tmp_path / "near", "en")
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_a_korean_font_labels_are_english_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(style, "korean_font", lambda: None)
    assert style.language_here("ko") == "en"
    assert "no Korean font is installed" in capsys.readouterr().err


def test_folders_become_a_grid_with_likeness_to_the_truth(tmp_path, capsys):
    for folder, grey in (("maps", 0), ("model", 90), ("truth", 100)):
        for name in ("a", "b"):
            write_png(tmp_path / folder / f"{name}.png", np.full((64, 64, 3), grey, np.uint8))
    folders = [str(tmp_path / "maps"), str(tmp_path / "model"), "--truth", str(tmp_path / "truth")]
    assert visualize.main([*folders, "--out", str(tmp_path / "vis")]) == 0
    assert width(tmp_path / "vis/grid.png") == 900
    write_png(tmp_path / "other/z.png", np.zeros((64, 64, 3), np.uint8))
    assert visualize.main([folders[0], str(tmp_path / "other"), "--out", str(tmp_path / "vis")]) == 2
    assert "do not pair by name: a, b; z" in capsys.readouterr().err


def test_a_run_becomes_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,lr\n0,1.0,0.1\n1,0.5,0.1\n")
    with style.styled("en"):
        png, _ = plot_run(tmp_path, tmp_path / "out", "en")
    assert width(png) == 900


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "has no metrics.csv: train with --report-to csv"), ("a,b\n1,2\n", "no log of a training run")],
)
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys, text, words):
    if text:
        (tmp_path / "metrics.csv").write_text(text)
    assert visualize.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_rows_of_a_folder_are_plotted_or_missed_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no rows to plot: make results measures them"):
        plots.plot_results(tmp_path, tmp_path, "en")
    measurements = [one for row in ROWS.values() for one in row.values()]
    ResultsFile(tmp_path / "some.jsonl", ORIGIN).keep(measurements, add=False)
    with style.styled("en"):
        written = plots.plot_results(tmp_path, tmp_path / "out", "en")
    assert [path.name for path in written] == [
        "some-bars.png", "some-bars.svg", "some-cost.png", "some-cost.svg",
    ]  # fmt: skip
