"""Measurements survive their file, and only rows of the same bench, setting and device meet there."""

import json

import pytest

from bench.results import Measurement, ResultsFile, by_subject, origin_of, read_rows


def results(path, setting=None, device="cpu"):
    return ResultsFile(path, origin_of("bench.any", setting or {"size": 64}, "python -m bench.any", device))


def test_a_measurement_is_the_median_and_the_interval_of_what_was_taken():
    one = Measurement.of("a", "wall", "s", [4.0, 2.0, 3.0])
    assert (one.value, one.n, one.low, one.high) == (3.0, 3, 2.0, 4.0)


def test_takes_of_a_quantity_are_put_together_and_other_values_replaced():
    first = [Measurement.of("a", "wall", "s", [1.0]), Measurement("a", "error", 0.5, "")]
    second = [Measurement.of("a", "wall", "s", [3.0]), Measurement("a", "error", 0.25, "")]
    rows = by_subject([*first, *second])
    assert rows["a"]["wall"] == Measurement.of("a", "wall", "s", [1.0, 3.0])
    assert rows["a"]["error"].value == 0.25


def test_a_line_says_what_was_measured_how_often_where_and_by_which_command(tmp_path):
    path = tmp_path / "folder/rows.json"
    results(path).keep([Measurement.of("a", "wall", "s", [1.0, 3.0])], add=True)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["value"], line["unit"], line["n"], line["interval"]) == (2.0, "s", 2, [1.0, 3.0])
    assert (line["bench"], line["setting"]) == ("bench.any", {"size": 64})
    assert line["command"] == "python -m bench.any"
    assert line["device"]
    assert {"python", "torch"} <= line["versions"].keys()
    assert "commit" in line


@pytest.mark.parametrize(("add", "takes"), [(True, [1.0, 5.0]), (False, [5.0])])
def test_rows_of_an_earlier_run_are_added_to_or_replaced(tmp_path, add, takes):
    path = tmp_path / "rows.json"
    results(path, {"size": 128}).keep([Measurement.of("a", "wall", "s", [9.0])], add=add)
    for value in (1.0, 5.0):
        results(path).keep([Measurement.of("a", "wall", "s", [value])], add=add)
    found = by_subject(results(path).earlier(add=add))
    assert found == {"a": {"wall": Measurement.of("a", "wall", "s", takes)}}
    assert len(results(path, {"size": 128}).earlier(add=add)) == 1  # another setting is left alone


def test_a_run_is_kept_row_by_row_without_being_counted_twice(tmp_path):
    path, found = tmp_path / "rows.json", []
    file = results(path)
    for value in (1.0, 5.0):
        found.append(Measurement.of("a", "wall", "s", [value]))
        file.keep(found, add=True)
    assert by_subject(results(path).earlier(add=True))["a"]["wall"].takes == (1.0, 5.0)


@pytest.mark.parametrize("text", ["[]", "{}", "no json"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match="holds no rows of our benches: name another file"):
        results(tmp_path / "rows.json")


def test_a_file_to_be_read_as_a_whole_holds_one_setting(tmp_path):
    path = tmp_path / "rows.json"
    results(path).keep([Measurement("a", "size", 1, "B")], add=False)
    assert read_rows(path)["a"]["size"].value == 1
    results(path, {"size": 128}).keep([Measurement("a", "size", 1, "B")], add=False)
    with pytest.raises(ValueError, match="several settings"):
        read_rows(path)
