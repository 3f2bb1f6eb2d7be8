"""What all benches say of a wrong command line, a missed bar, and their rows."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from bench.harness import SPREAD, Bench, BenchFlags, Column, above, chosen, markdown, table_of
from bench.results import Measurement, by_subject
from common.flags import flag


@dataclass(frozen=True)
class AnyFlags(BenchFlags):
    LOWEST: ClassVar = {"seed": 0}
    SHARED: ClassVar = ("size",)

    size: int = flag(64, "pixels")
    rounds: int = flag(2, "of each")
    seed: int = flag(0, "of all")


@dataclass(frozen=True)
class CheckedFlags(AnyFlags):
    check: bool = flag(False, "end with 1")


def measure(flags):
    yield Measurement.of("a", "wall", "s", [1.0] * flags.rounds)


def table(rows, flags):
    return markdown(("name", "n"), [(name, row["wall"].n) for name, row in rows.items()])


def bench(flags=AnyFlags, **options):
    return Bench("bench.any", "About.", flags, measure, table, **options)


def test_a_table_has_a_line_for_head_rule_and_each_row():
    assert markdown(("a", "b"), [(1, 2), (3, 4)]).splitlines() == [
        "| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |",
    ]  # fmt: skip


def test_a_column_shows_value_interval_or_ratio_and_a_dash_where_there_is_nothing():
    rows = by_subject([
        Measurement.of("first | x", "wall", "s", [4e-3, 2e-3, 3e-3]),
        Measurement("second | y", "size", 2048, "B"),
        Measurement.of("second | y", "wall", "s", [1e-3]),
    ])  # fmt: skip
    columns = (
        Column("ms", "wall", "{:.1f}", 1e-3),
        Column("spread", "wall", SPREAD, 1e-3),
        Column("of", "wall", "{:.0%}", ratio="of first"),
        Column("faster", "wall", ratio="faster"),
        Column("KiB", "size", "{:.0f}", 1024),
    )
    assert table_of(columns, "name | of")(rows).splitlines() == [
        "| name | of | ms | spread | of | faster | KiB |",
        "|---|---|---|---|---|---|---|",
        "| first | x | 3.0 | 3.00 (2.00..4.00) | 100% | 1.00 x | - |",
        "| second | y | 1.0 | 1.00 (1.00..1.00) | 33% | 3.00 x | 2 |",
    ]


def test_only_what_is_not_at_most_its_bar_is_named():
    assert above("a", "peak", 1.0, 1.0) == []
    assert above("a", "peak", 1.2, 1.0) == ["a: peak is 1.200, the bar is 1.000"]
    assert above("a", "peak", float("nan"), 1.0)


def test_what_is_asked_for_comes_in_the_order_that_is_known():
    assert chosen((), "abc", "letter") == list("abc")
    assert chosen(("c", "a"), "abc", "letter") == list("ac")
    with pytest.raises(ValueError, match="unknown letter 'd': use some of a; b; c"):
        chosen(("d",), "abc", "letter")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rounds", "0"], "rounds=0: give 1 or more"),
        (["--threads", "0"], "threads=0: give 1 or more"),
        (["--seed", "-1"], "seed=-1: give 0 or more"),
        (["--size", "100"], "size=100: give pixels in steps of 64"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_sentence(flags, sentence, capsys):
    assert bench().run(flags) == 2
    assert capsys.readouterr().err == f"{sentence}\n"


def test_the_table_is_printed_and_the_rows_are_kept_with_their_command(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert bench().run(["--rounds", "3", "--results", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| a | 3 |"
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["command"] == f"python -m bench.any --rounds 3 --results {path}"
    assert line["setting"]["size"] == 64
    assert line["device"]["threads"] >= 1


@pytest.mark.parametrize(("adds_up", "last"), [(True, "| a | 4 |"), (False, "| a | 2 |")])
def test_rounds_of_two_runs_are_one_table_where_a_bench_says_so(tmp_path, capsys, adds_up, last):
    for _ in range(2):
        assert bench(adds_up=adds_up).run(["--results", str(tmp_path / "rows.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("flags", "words", "code"), [(AnyFlags, [], 1), (CheckedFlags, [], 0), (CheckedFlags, ["--check"], 1)]
)
def test_a_missed_bar_is_said_and_counts_unless_it_is_not_checked(flags, words, code, capsys):
    assert bench(flags, missed=lambda rows: ["too slow"]).run(words) == code
    assert capsys.readouterr().err == "not good enough: too slow\n"


def test_earlier_rows_of_the_same_setting_are_in_the_table(tmp_path, capsys):
    path = tmp_path / "rows.json"
    other = Bench("bench.any", "", AnyFlags, lambda _: [Measurement.of("b", "wall", "s", [1.0])], table)
    for one, size in ((bench(), 64), (bench(), 128), (other, 64)):
        assert one.run(["--size", str(size), "--results", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["| a | 2 |", "| b | 1 |"]
