"""The bench of the attention measures what it says, on a layer small enough for a test."""

import re

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.results import read_rows
from bench.speed.attention import SIZES, SPREADS, WAYS, error, inputs, main

ROW = re.compile(r"^\| small \| (?P<way>[\w ]+) \| (?P<ms>[\d.]+) \| [\d.]+ to [\d.]+ \| (?P<gain>[\d.]+) \|")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(SIZES, "small", (1, 2, 20, 30, 8))


def test_the_table_has_a_row_for_each_way(capsys):
    assert main(["--sizes", "small", "--rounds", "2"]) == 0
    found = [match for line in capsys.readouterr().out.splitlines() if (match := ROW.match(line))]
    assert [match["way"] for match in found] == list(WAYS)
    assert float(found[0]["gain"]) == 1  # torch's float32 beside itself


def test_every_round_and_error_is_kept(tmp_path):
    assert main(["--sizes", "small", "--rounds", "3", "--results", str(tmp_path / "rows.json")]) == 0
    rows = read_rows(tmp_path / "rows.json")
    assert list(rows) == [f"small | {way}" for way in WAYS]
    assert {row["wall"].n for row in rows.values()} == {3}
    assert {len(row) for row in rows.values()} == {2 + len(SPREADS)}


def test_the_error_is_relative_and_sees_a_wrong_answer():
    size = SIZES["small"]
    assert error(scaled_dot_product_attention, size, 1.0) < 1e-5
    wrong = error(lambda q, k, v: 1.5 * scaled_dot_product_attention(q, k, v), size, 1.0)
    assert wrong == pytest.approx(0.5, abs=1e-5)


def test_inputs_are_views_of_joined_heads():
    q, k, v = inputs(SIZES["small"], 1.0)
    assert [t.shape for t in (q, k, v)] == [(1, 2, 20, 8), (1, 2, 30, 8), (1, 2, 30, 8)]
    assert all(t.transpose(1, 2).is_contiguous() for t in (k, v))
    assert torch.equal(inputs(SIZES["small"], 5.0)[0], 5 * q)


def test_no_rounds_are_refused(capsys):
    assert main(["--rounds", "0"]) == 2
    assert "give 1 or more" in capsys.readouterr().err
