"""The benches of pruning: sizes follow from shapes, steps run, files are not made twice."""

import pytest

from bench.quality import pruned_quality
from bench.speed import pruned_step
from ldm.config import create_meta_model

TINY = "models/tiny.yaml"


@pytest.fixture(scope="module")
def rows():
    flags = ["--config", TINY, "--resolution", "64", "--rounds", "1", "--device", "cpu", "--time", "all 50 %"]
    return pruned_step.measure(pruned_step.parse_args(flags))


def test_the_whole_is_unet_and_branch_and_each_level_is_smaller(rows):
    model = create_meta_model(TINY)
    whole = sum(p.numel() for part in (model.model, model.control_model) for p in part.parameters())
    assert rows[pruned_step.WHOLE].params == whole
    assert rows["all 50 %"].params < rows["all 25 %"].params < rows["mlp, heads 25 %"].params < whole


def test_only_the_levels_that_were_asked_for_are_timed_beside_the_whole(rows):
    assert {name for name, row in rows.items() if row.seconds} == {pruned_step.WHOLE, "all 50 %"}
    _, _, *lines = pruned_step.table(rows).splitlines()
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


def test_levels_are_made_once_and_scored(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(pruned_quality.quantized_quality, "main", lambda argv: seen.append(argv) or 0)
    flags = ["--run", str(tmp_path), "--levels", "2:4", "--finetune-steps", "0", "--count", "3"]
    assert pruned_quality.main(flags) == 0
    (made,) = tmp_path.glob("*/2-4.safetensors")  # a folder for each set of weights
    time = made.stat().st_mtime_ns
    assert pruned_quality.main(flags) == 0
    assert made.stat().st_mtime_ns == time
    assert seen[1][:1] == [f"2:4={made}"]
    assert seen[1][-3:] == ["--count", "3", "--rows"]
    assert pruned_quality.main(["--levels", "3:4"]) == 2
    assert "unknown level '3:4'" in capsys.readouterr().err
