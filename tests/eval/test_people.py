"""Drawings by people: what their lines enclose, gaps bridged, and how well pictures of them follow."""

import json

import numpy as np
import pytest

from eval.hand_drawings import PAGE, HandDrawing, load_drawings
from eval.people import Found, main, spread_out
from tests.small_files import write_small_model


def ring_of(radius, start=0.0, end=2 * np.pi):
    angles = np.linspace(start, end, 200)
    return PAGE / 2 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def area(mask):
    return np.count_nonzero(mask)


def test_a_closed_line_encloses_its_inside_and_a_gap_is_bridged():
    whole = HandDrawing("circle", (ring_of(150),)).enclosed()
    gapped = HandDrawing("circle", (ring_of(150, 0.1, 6.2),)).enclosed()
    for mask in (whole, gapped):
        assert area(mask) == pytest.approx(np.pi * 150**2, rel=0.05)


def test_a_rings_hole_is_left_out_and_a_circles_inner_line_is_not():
    strokes = (ring_of(150), ring_of(70))
    assert area(HandDrawing("ring", strokes).enclosed()) == pytest.approx(np.pi * (150**2 - 70**2), rel=0.07)
    assert area(HandDrawing("circle", strokes).enclosed()) == pytest.approx(np.pi * 150**2, rel=0.05)


def test_a_line_that_encloses_nothing_is_none():
    assert HandDrawing("circle", (ring_of(150, 0, 2.5),)).enclosed() is None


def test_some_of_many_are_spread_over_all():
    drawings = [HandDrawing(str(i), ()) for i in range(100)]
    assert [one.shape for one in spread_out(drawings, 3)] == ["0", "49", "99"]
    assert spread_out(drawings, None) == drawings


def test_rows_are_shares_and_a_median_with_intervals():
    found = Found(["circle", "star"], np.array([0.95, 0.5]), np.array([10.0, 12.0]))
    rows = {one.quantity: one for one in found.rows("all")}
    assert (rows["followed"].value, rows["colours"].value, rows["median IoU"].value) == (0.5, 1.0, 0.725)
    assert rows["followed"].low < 0.5 < rows["followed"].high


@pytest.fixture
def drawings(tmp_path):
    path = tmp_path / "drawings.jsonl"
    strokes = [ring_of(150).T.tolist()]
    path.write_text(
        "".join(json.dumps({"shape": name, "strokes": strokes}) + "\n" for name in ("circle", "ring"))
    )
    return path


def test_drawings_are_measured_and_kept_as_rows(drawings, tmp_path, capsys):
    config, rows = write_small_model(tmp_path), tmp_path / "rows.jsonl"
    flags = ["--config", str(config), "--drawings", str(drawings), "--size", "64", "--steps", "1"]
    assert main([*flags, "--results", str(rows), "--grid", str(tmp_path / "grid.png")]) == 0
    subjects = [json.loads(line)["subject"] for line in rows.read_text().splitlines()]
    assert subjects == ["line of 4 px", "line of 8 px", "line of 16 px", "circle", "ring", "all"]
    assert "| all | " in capsys.readouterr().out
    assert (tmp_path / "grid.png").is_file()


def test_drawings_that_are_not_there_or_none_are_one_sentence(tmp_path, capsys):
    assert main(["--drawings", str(tmp_path / "none.ndjson")]) == 2
    assert "there are no drawings by people in" in capsys.readouterr().err
    (tmp_path / "a.ndjson").write_text('{"word": "cup"}\n')
    with pytest.raises(ValueError, match="a.ndjson:1 is no drawing with shape and strokes"):
        load_drawings(tmp_path / "a.ndjson")
