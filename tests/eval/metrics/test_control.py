"""Whether pictures show their control map: lines, soft lines, depth, classes."""

import numpy as np
import pytest

from annotator.registry import DETECTORS, detect
from eval.metrics.control import COLUMNS, CONTROL, MEASURES, compare, f1, mean_iou, rmse, unreadable
from eval.metrics.metric import Picture, Tools


def line(column, side=64):
    mask = np.zeros((side, side), bool)
    mask[8:56, column] = True
    return mask


def as_map(mask):
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255


def test_f1_is_that_of_its_counts():
    found, asked = np.zeros((2, 4, 4), bool)
    found[0, :3], asked[0, 1:4] = True, True  # two of three on either side
    assert f1(found, asked) == pytest.approx(2 * 2 / (3 + 3))


def test_a_line_may_move_by_the_tolerance_and_no_further():
    assert f1(line(20), line(20)) == 1
    assert f1(line(20), line(22)) == 0
    assert f1(line(20), line(22), near=2) == 1
    assert f1(line(20), line(23), near=2) == 0


def test_no_lines_where_none_are_asked_is_right_and_else_wrong():
    empty = np.zeros((64, 64), bool)
    assert f1(empty, empty) == 1
    assert f1(empty, line(5), near=2) == f1(line(5), empty, near=2) == 0


def test_iou_is_averaged_over_the_classes_of_either_map():
    found, asked = np.zeros((2, 4, 4, 3), np.uint8)
    asked[:, 2:] = (10, 20, 30)
    found[:, 3:] = (10, 20, 30)
    assert mean_iou(found, asked) == pytest.approx(((8 / 12) + (4 / 8)) / 2)
    assert mean_iou(asked, asked) == 1


def test_rmse_is_in_levels():
    assert rmse(np.full((4, 4, 3), 250, np.uint8), np.full((4, 4, 3), 240, np.uint8)) == 10


@pytest.mark.parametrize("kind", ["lines", "soft", "depth", "classes"])
def test_a_map_is_like_itself(kind):
    shown = as_map(line(9) | line(40))
    values = compare(kind, shown, shown)
    assert set(values) <= set(COLUMNS)
    best = {"rmse": 0.0}
    assert values == {name: pytest.approx(best.get(name, 1.0), abs=1e-3) for name in values}


@pytest.mark.parametrize("name", ["canny", "drawing", "xdog"])
def test_a_picture_shows_the_map_its_reader_makes_of_it(name):
    image = np.full((64, 64, 3), 230, np.uint8)
    image[20:40, 16:50] = (40, 60, 200)
    reader = MEASURES[name].reader
    picture = Picture(image, map=detect(reader, image, resolution=64), control=(name, {}))
    values = dict(zip(COLUMNS, CONTROL.open(Tools(device="cpu"))([picture])[0], strict=True))
    assert values["f1"] == values["f1_2px"] == 1
    assert np.isnan(values["miou"])


def test_maps_of_sides_that_no_detector_makes_are_refused():
    image = np.zeros((100, 100, 3), np.uint8)
    with pytest.raises(ValueError, match="128x128 and 100x100"):
        CONTROL.open(Tools(device="cpu"))([Picture(image, map=image, control=("canny", {}))])


def test_what_cannot_be_read_is_said():
    assert unreadable([("canny", {}), ("drawing", {})]) is None
    assert "give --control" in unreadable([None])
    assert "no measure for maps of openpose" in unreadable([("openpose", {})])
    missing = [one for one, measure in MEASURES.items() if measure.reader not in DETECTORS]
    assert all("not in this build" in unreadable([(one, {})]) for one in missing)
