"""The bench of the lite branch: what it counts, and what it says of a wrong command line."""

from pathlib import Path

import pytest

from bench.harness import StepFlags
from bench.results import by_subject
from bench.speed import lite

TINY = Path("models/tiny.yaml")
COPIES = 4  # weights, gradients and AdamW's two moments
FLOAT = 4  # bytes
FLAGS = StepFlags(config=TINY, size=64, rounds=1, device="cpu")


@pytest.fixture(scope="module")
def rows():
    return by_subject(lite.measure(FLAGS))


def test_training_memory_is_four_copies_of_the_weights(rows):
    for name in (lite.FULL, lite.LITE):
        copies = rows[name]["training memory"].value / (FLOAT * rows[name]["weights"].value)
        assert copies == pytest.approx(COPIES, rel=1e-3)  # and a step counter a tensor


def test_a_lite_step_is_less_arithmetic_than_a_full_one(rows):
    names = (lite.FLOOR, lite.LITE, lite.FULL)
    flops = [rows[name]["training arithmetic"].value for name in names]
    assert flops == sorted(flops)


def test_the_table_has_a_row_a_kind_and_its_ratios(rows):
    _, _, plain, *others = lite.table(rows, FLAGS).splitlines()
    assert plain.startswith(f"| {lite.PLAIN} |")
    assert [line.split(" | ")[0] for line in others] == [f"| {name}" for name in lite.kinds(TINY)]
    assert " | 100.0% | " in others[0]


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--resolution", "100"], ["--config", "no.yaml"]])
def test_a_bench_that_cannot_be_says_why(flags, capsys):
    assert lite.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
