"""Measurements survive their file, and only rows of the same bench, setting and device meet there."""

import json
import math
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from bench.results import ROOT, SCHEMA, Measurement, ResultsFile, by_subject, read_lines, read_rows, tables_in

SCHEMA_FILE = ROOT / "results/schema.json"
DEVICE = {"name": "some processor", "cores": 2, "threads": 2}
ORIGIN = {
    "bench": "bench.any", "setting": {"size": 64}, "command": "python -m bench.any", "commit": "abcdef0",
    "date": "2026-01-31", "device": DEVICE, "versions": {"torch": "2.12.1"},
    "files": {"models/a.yaml": "0" * 64},
}  # fmt: skip


def results(path, **origin):
    return ResultsFile(path, ORIGIN | origin)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def wall(subject, *takes):
    return Measurement.of(subject, "wall", "s", takes)


def test_a_measurement_is_the_median_and_the_interval_of_what_was_taken():
    one = Measurement.of("a", "wall", "s", [4.0, 2.0, 3.0])
    assert (one.value, one.n, one.low, one.high) == (3.0, 3, 2.0, 4.0)


def test_takes_of_a_quantity_are_put_together_and_other_values_replaced():
    first = [wall("a", 1.0), Measurement("a", "error", 0.5, "")]
    second = [wall("a", 3.0), Measurement("a", "error", 0.25, "")]
    rows = by_subject([*first, *second])
    assert rows["a"]["wall"] == wall("a", 1.0, 3.0)
    assert rows["a"]["error"].value == 0.25


def test_a_line_says_what_was_measured_how_often_and_whence(tmp_path):
    path = tmp_path / "folder/rows.jsonl"
    results(path).keep([wall("a", 1.0, 3.0), Measurement("a", "PSNR", math.inf, "dB", 8)], add=True)
    (line,) = lines_of(path)
    assert line["values"]["wall"] == {
        "value": 2.0, "unit": "s", "n": 2, "interval": [1.0, 3.0], "takes": [1.0, 3.0]
    }  # fmt: skip
    assert line["values"]["PSNR"]["value"] == "inf"  # which JSON has no number for
    assert {name: line[name] for name in ORIGIN} == ORIGIN
    assert read_rows(path)["a"]["PSNR"].value == math.inf


def test_what_is_written_and_what_is_committed_has_the_schema(tmp_path):
    validator = Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    path = tmp_path / "rows.jsonl"
    results(path).keep([wall("a", 1.0), Measurement("b", "PSNR", math.inf, "dB")], add=False)
    for file in (path, *(ROOT / "results").glob("*.jsonl")):
        for line in lines_of(file):
            validator.validate(line)
    (line, _) = lines_of(path)
    for spoilt in (
        line | {"values": {}},
        line | {"device": "cpu"},
        {**line, "date": "today"},
        {**line, "x": 1},
    ):
        assert not validator.is_valid(spoilt)


@pytest.mark.parametrize(("add", "takes"), [(True, [1.0, 5.0]), (False, [5.0])])
def test_rows_of_an_earlier_run_are_added_to_or_replaced(tmp_path, add, takes):
    path = tmp_path / "rows.jsonl"
    results(path, setting={"size": 128}).keep([wall("a", 9.0)], add=add)
    for value in (1.0, 5.0):
        results(path).keep([wall("a", value)], add=add)
    assert by_subject(results(path).earlier(add=add)) == {"a": {"wall": wall("a", *takes)}}
    assert len(results(path, setting={"size": 128}).earlier(add=add)) == 1  # another setting is left alone


def test_a_replaced_row_keeps_no_number_of_the_run_before(tmp_path):
    path = tmp_path / "rows.jsonl"
    results(path).keep([wall("a", 1.0), Measurement("a", "error", 0.5, "")], add=False)
    results(path, commit="fedcba0").keep([wall("a", 2.0)], add=False)
    (line,) = lines_of(path)
    assert (list(line["values"]), line["commit"]) == (["wall"], "fedcba0")


def test_another_device_is_another_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    results(path).keep([wall("a", 1.0)], add=False)
    results(path, device=DEVICE | {"threads": 1}).keep([wall("a", 2.0)], add=False)
    assert [len(lines) for lines in tables_in(read_lines(path))] == [1, 1]
    with pytest.raises(ValueError, match="rows of several settings, or none"):
        read_rows(path)


def test_a_run_is_kept_row_by_row_without_being_counted_twice(tmp_path):
    path, found = tmp_path / "rows.jsonl", []
    file = results(path)
    for value in (1.0, 5.0):
        found.append(wall("a", value))
        file.keep(found, add=True)
    assert by_subject(results(path).earlier(add=True))["a"]["wall"].takes == (1.0, 5.0)


@pytest.mark.parametrize("text", ["[]", "{}", "no json", '{"schema": 1}', "\u00ff\u00fe"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="holds no rows of our benches: name another file"):
        results(tmp_path / "rows.jsonl")


def test_rows_of_another_version_are_refused_by_their_schema(tmp_path):
    path = tmp_path / "rows.jsonl"
    results(path).keep([wall("a", 1.0)], add=False)
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 99'))
    with pytest.raises(ValueError, match="has rows of schema 99"):
        read_lines(Path(path))
