"""The bench of pruned steps: sizes follow from shapes, and steps run."""

from pathlib import Path

import pytest

from bench.results import by_subject
from bench.speed import pruned_step
from ldm.config import create_meta_model

TINY = Path("models/tiny.yaml")
FLAGS = pruned_step.PrunedStepFlags(config=TINY, only=("all 50 %",), size=64, rounds=1)


@pytest.fixture(scope="module")
def rows():
    return by_subject(pruned_step.measure(FLAGS))


def test_the_whole_is_unet_and_branch_and_each_level_is_smaller(rows):
    model = create_meta_model(TINY)
    whole = sum(p.numel() for part in (model.model, model.control_model) for p in part.parameters())
    weights = {name: row["weights"].value for name, row in rows.items()}
    assert weights[pruned_step.WHOLE] == whole
    assert weights["all 50 %"] < weights["all 25 %"] < weights["mlp, heads 25 %"] < whole


def test_only_the_levels_that_were_asked_for_are_timed_beside_the_whole(rows):
    assert {name for name, row in rows.items() if "wall" in row} == {pruned_step.WHOLE, "all 50 %"}
    _, _, *lines = pruned_step.table(rows, FLAGS).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in pruned_step.LEVELS]
    assert lines[0].endswith("| 1.00 x |")
    assert lines[1].endswith("| - | - | - |")


def test_levels_share_what_is_not_cut():
    whole = pruned_step.shrunk(TINY, pruned_step.WHOLE)
    state = pruned_step.random_weights(whole)
    small = pruned_step.with_memory(pruned_step.shrunk(TINY, "mlp, heads 50 %"), state)
    shared = [name for name, value in small.named_parameters() if value.data_ptr() == state[name].data_ptr()]
    assert all(value.isfinite().all() for value in small.parameters())
    assert "control_model.input_blocks.1.0.in_layers.2.weight" in shared
    assert not any(".to_out.0.weight" in name for name in shared)


@pytest.mark.parametrize("flags", [["--resolution", "100"], ["--time", "none"], ["--config", "no.yaml"]])
def test_a_bench_that_cannot_be_says_why(flags, capsys):
    assert pruned_step.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
