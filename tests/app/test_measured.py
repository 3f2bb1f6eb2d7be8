"""Rows of results/ as tables: what belongs together stands together, and nothing else is taken for a row."""

import json

import pytest

from app.measured import read_tables


def line(subject="ours", seconds=1.25, **fields):
    value = {"value": seconds, "unit": "s", "n": 3, "interval": [1.0, 1.5]}
    device = {"name": "a processor", "cores": 2, "threads": 2}
    usual = {"bench": "bench.step", "setting": {"side": 512}, "device": device, "date": "2026-01-02"}
    usual |= {
        "schema": 1,
        "subject": subject,
        "values": {"seconds": value},
        "command": "python -m bench.step",
    }
    return {**usual, **fields}


@pytest.fixture
def write(tmp_path):
    def put(*lines, name="step.jsonl"):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
        (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
        return read_tables(tmp_path)

    return put


def test_without_a_folder_there_are_no_tables(tmp_path):
    assert read_tables(tmp_path / "nowhere") == []


def test_rows_of_one_setting_and_device_are_one_table(write):
    (table,) = write(line("ours"), line("theirs", 2.5))
    assert list(table.rows) == ["ours", "theirs"]
    assert table.quantities == ["seconds"]
    assert table.cell("theirs", "seconds") == "2.5 s (1 – 1.5)"
    assert "a processor" in table.name


@pytest.mark.parametrize(
    "other", [{"setting": {"side": 768}}, {"bench": "bench.speed"}, {"device": {"name": "x"}}]
)
def test_other_settings_and_devices_are_other_tables(write, other):
    assert len(write(line(), line(**other))) == 2


def test_a_quantity_that_a_row_lacks_is_a_dash(write):
    (table,) = write(line(), line("theirs", values={"bytes": line()["values"]["seconds"]}))
    assert table.cell("ours", "bytes") == "–"


def test_what_is_not_finite_or_has_no_interval_is_shown_all_the_same(write):
    endless = {"value": "inf", "unit": "dB", "n": 1, "interval": [None, None]}
    (table,) = write(line(values={"psnr": endless}))
    assert table.cell("ours", "psnr") == "inf dB"


@pytest.mark.parametrize("text", ["{", "5", "[]", json.dumps(line(schema=9)), json.dumps({"schema": 1})])
def test_what_is_no_row_of_ours_is_left_out(write, text):
    assert [list(one.rows) for one in write(text, line())] == [["ours"]]
