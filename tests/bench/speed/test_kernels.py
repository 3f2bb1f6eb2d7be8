"""The bench of native kernels measures each of them both ways, and its arithmetic is right."""

import pytest

from bench.processes import interleaved
from bench.results import Measurement, by_subject
from bench.speed import kernels as bench
from quantize import native

needs_library = pytest.mark.skipif(native.library() is None, reason="no compiler, or a CPU without VNNI")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", [(1, 32, 4, 4)])
    monkeypatch.setattr(bench, "TOKENS", [(1, 6, 8)])
    monkeypatch.setattr(bench, "WEIGHTS", [(4, 8, 3, 3)])
    monkeypatch.setattr(bench, "LAYERS", [(5, 8, 64)])
    monkeypatch.setattr(bench, "CONVOLUTIONS", [(8, 5, 16)])
    monkeypatch.setattr(bench, "UPSAMPLINGS", [(8, 3)])
    monkeypatch.setattr(bench, "ATTENTIONS", [(1, 2, 20, 30, 8)])


@needs_library
def test_the_table_has_a_line_for_every_kernel(capsys):
    assert bench.main(["--rounds", "1"]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| ")][1:]
    every = (bench.images, bench.tokens, bench.weights, bench.layers, bench.convolutions, bench.attentions)
    assert len(rows) == sum(len(list(cases())) for cases in every)
    assert sum("| 1 x 32 x 4 x 4 |" in row for row in rows) == len(list(bench.images()))


@needs_library
def test_only_some_kernels_are_measured_when_asked(capsys):
    bench.main(["--rounds", "1", "--only", "gate"])
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| gate", "| gate, own range", "| layer and gate"]


def test_each_round_runs_plain_torch_and_then_the_kernel():
    ways = []
    run = lambda: ways.append(native.library() is None)  # noqa: E731
    interleaved({"plain": bench.plain(run), "ours": run}, 2)
    assert ways == [True, native.library() is None] * 3


def test_a_line_says_times_ratio_and_speed():
    values = {"plain torch": 0.010, "ours": 0.002, "gain": 5.0, "speed": 2e9}
    rows = by_subject(Measurement("gate | 2 x 3", name, value, "") for name, value in values.items())
    last = bench.table(rows).splitlines()[-1]
    assert last == "| gate | 2 x 3 | 10.00 | 2.00 | 5.0 x | 2.0 |"


def test_bytes_that_must_move_are_counted_once_a_walk():
    moved = {case.name: case.moved / (1 * 32 * 4 * 4) for case in bench.images()}
    assert moved["bytes"] == 4 + 1
    assert moved["bytes, own range"] == moved["group norm"] == 4 + 4 + 1
    assert moved["group norm, SiLU, floats"] == 4 + 4 + 4


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--threads", "0"]])
def test_a_wrong_command_line_is_refused(flags, capsys):
    assert bench.main(flags) == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_a_machine_without_kernels_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(native, "library", lambda: None)
    assert bench.main([]) == 2
    assert "no native kernels" in capsys.readouterr().err
