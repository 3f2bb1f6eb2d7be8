"""bench.step: all contenders compute the same on the same weights, and its records add up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from bench import step, step_results
from bench.step_contenders import CPU
from bench.step_files import draw
from bench.step_results import EQUAL, compare, read_results, step_table, write_results
from bench.step_setting import Setting, missing
from bench.step_worker import decode_setting, encode_setting
from quantize.loading import read_content
from tests.small_models import relative_error, settings

INT8 = 0.15  # of a step with random weights, at layers this narrow
LEVEL = 1  # of a byte: float pictures that are the same but for rounding


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    OmegaConf.save(settings(image_size=8), folder / "small.yaml")
    return Setting(folder / "small.yaml", folder, size=64, threads=1)


def computed(name, setting):
    CPU[name].prepare(setting)
    with torch.inference_mode():
        return CPU[name].load(setting)()


def test_diffusers_and_ours_compute_the_same_on_the_same_weights(setting):
    pytest.importorskip("diffusers")
    expected, _ = computed("diffusers", setting)
    got, _ = computed("ours-fp32", setting)
    assert expected.std() > 0.1
    assert relative_error(got, expected) < EQUAL


@pytest.mark.parametrize("name", ["ours-int8-dynamic", "ours-int8-static"])
def test_quantized_contenders_are_near_the_float_one(name, setting):
    expected, _ = computed("ours-fp32", setting)
    got, _ = computed(name, setting)
    assert EQUAL < relative_error(got, expected) < INT8


def test_static_files_have_the_dynamic_codes_and_ranges_by_groups_of_timesteps(setting):
    files = setting.files
    files.make_weights()
    static = files.make_quantized("int8_static", setting.size)
    content = read_content(static)
    assert len(content.schedule.groups.edges) == 3
    assert "int8_static" in content.plan.layers.values()
    assert files.quantized("int8_dynamic", setting.size).is_file()


def test_both_pipelines_make_the_same_picture(setting):
    pytest.importorskip("diffusers")
    small = replace(setting, picture=True, steps=2)
    (ours, seconds), (theirs, their_seconds) = (computed(name, small) for name in ("ours-fp32", "diffusers"))
    assert ours.shape == theirs.shape == (64, 64, 3)
    assert list(seconds) == list(their_seconds) == list(step_results.PARTS)
    assert ours.float().std() > 10
    assert (ours.int() - theirs.int()).abs().max() <= LEVEL


def test_a_drawn_weight_depends_on_its_name_and_keeps_the_variance():
    first, again = (draw("a.weight", torch.Size([64, 256])) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw("b.weight", torch.Size([64, 256])))
    assert (first @ torch.randn(256, 500)).std() == pytest.approx(1, rel=0.1)
    assert draw("norm.weight", torch.Size([500])).mean() == pytest.approx(1, abs=0.05)
    assert draw("norm.bias", torch.Size([500])).mean() == pytest.approx(0, abs=0.05)


def test_a_setting_survives_the_command_line(setting):
    assert decode_setting(encode_setting(setting)) == setting


def row(*walls):
    runs = [{"wall": wall, "cpu": 2 * wall, "peak": 2**30} for wall in walls]
    return {"runs": runs, "first": {"wall": 9.0, "cpu": 9.0, "peak": 2**31}, "loading": {"peak": 2**29}}


def test_the_table_has_medians_spreads_and_the_highest_peak_of_any_step():
    lines = step_table({"a": row(4.0, 2.0, 3.0), "b": row(1.0)}).splitlines()
    assert lines[2] == "| a | 3.00 (2.00..4.00) | 6.00 (4.00..8.00) | 1.00 x | 0.50 | 2.00 | 9.0 |  | 3 |"
    assert lines[3].startswith("| b | 1.00 (1.00..1.00) | 2.00 (2.00..2.00) | 3.00 x |")


def test_results_are_found_again_and_those_of_another_setting_refused(setting, tmp_path):
    path = tmp_path / "results.json"
    assert read_results(path, setting) == {}
    write_results(path, setting, {"a": row(1.0)})
    assert read_results(path, setting) == {"a": row(1.0)}
    with pytest.raises(ValueError, match="was measured at .*'size': 64.*: name another file"):
        read_results(path, replace(setting, size=128))
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no results of this bench"):
        read_results(path, setting)


def test_float_contenders_that_differ_are_complained_about(tmp_path):
    outputs = {
        "diffusers": torch.ones(4),
        "ours-fp32": torch.ones(4) * 1.1,
        "ours-int8-dynamic": torch.zeros(4),
    }
    for name, output in outputs.items():
        torch.save(output, tmp_path / name)
    results = {name: row() for name in outputs}
    complaints = compare({name: tmp_path / name for name in outputs}, results)
    assert complaints == ["ours-fp32 differs from diffusers by 1.0e-01: they do not compute the same"]
    assert results["ours-int8-dynamic"]["error"] == pytest.approx(1)


def test_peers_that_are_not_installed_are_left_out_with_a_way_to_have_them(monkeypatch, capsys):
    monkeypatch.setattr("bench.step_setting.find_spec", lambda name: None)
    assert missing(CPU["openvino-int8"]).endswith('pip install -e ".[bench]"')
    args = step.parse_args(["--only", "openvino-int8", "ours-fp32"])
    assert step.chosen(args, Setting(Path("any.yaml"), Path())) == ["ours-fp32"]
    assert "openvino-int8 is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--only", "nobody"], "unknown contender 'nobody': use some of diffusers,"),
        (["--size", "100"], "pixels in steps of 64"),
        (["--rounds", "0"], "give 1 or more"),
        (["--device", "mps"], "device 'mps': use cpu or cuda"),
        (["--picture", "--only", "openvino-int8"], "no contender is left to measure"),
    ],
)
def test_bad_requests_are_one_sentence(options, sentence, capsys):
    assert step.main(options) == 2
    assert sentence in capsys.readouterr().err


def test_without_a_card_its_table_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert step.main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out == "not measured: there is no CUDA card here\n"


def test_rounds_of_two_runs_add_up(setting, tmp_path, capsys):
    path = tmp_path / "r.json"
    options = [
        "--config",
        str(setting.config),
        "--folder",
        str(setting.folder),
        "--size",
        "64",
        "--threads",
        "1",
    ]
    options += ["--only", "ours-fp32", "--rounds", "1", "--json", str(path)]
    assert step.main(options) == 0
    assert step.main(options) == 0
    assert len(json.loads(path.read_text())["results"]["ours-fp32"]["runs"]) == 2
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 2 |")
