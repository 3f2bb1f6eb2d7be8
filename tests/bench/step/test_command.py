"""bench.step: all contenders compute the same on the same weights, and its rounds add up."""

import json
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from bench.results import Measurement, by_subject
from bench.step.command import errors, main, racing, table
from bench.step.contenders import CPU, EQUAL
from bench.step.openvino import ir_path
from bench.step.setting import Setting
from tests.small_models import relative_error, settings

INT8 = 0.15  # of a step with random weights, at layers this narrow


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    OmegaConf.save(settings(image_size=8), folder / "small.yaml")
    return Setting(config=folder / "small.yaml", folder=folder, size=64, threads=1)


def computed(name, setting):
    CPU[name].prepare(setting)
    with torch.inference_mode():
        return CPU[name].load(setting)()


def test_diffusers_and_ours_compute_the_same_on_the_same_weights(setting):
    pytest.importorskip("diffusers")
    expected, got = computed("diffusers", setting), computed("ours-fp32", setting)
    assert expected.std() > 0.1
    assert relative_error(got, expected) < EQUAL


@pytest.mark.parametrize("name", ["ours-int8-dynamic", "ours-int8-static"])
def test_quantized_contenders_are_near_the_float_one(name, setting):
    expected, got = computed("ours-fp32", setting), computed(name, setting)
    assert EQUAL < relative_error(got, expected) < INT8


def test_converted_models_of_other_weights_have_other_names(setting):
    paths = [ir_path(one, "unet", "int8") for one in (setting, replace(setting, weights="default"))]
    assert len(set(paths)) == 2


def test_peers_that_are_not_installed_are_left_out_with_a_way_to_have_them(setting, monkeypatch, capsys):
    monkeypatch.setattr("bench.step.setting.find_spec", lambda name: None)
    assert racing(replace(setting, only=("openvino-int8", "ours-fp32"))) == ["ours-fp32"]
    said = capsys.readouterr().err
    assert said.startswith("openvino-int8 is left out: ")
    assert said.endswith('pip install -e ".[bench]"\n')


def rows_of(name, *walls):
    values = {"wall": walls, "cpu": [2 * wall for wall in walls], "first cpu": [9.0]}
    peaks = {"peak": [2**31, 2**30], "peak loading": [2**29]}
    return [Measurement.of(name, quantity, "", taken) for quantity, taken in (values | peaks).items()]


def test_the_table_has_medians_spreads_and_the_highest_peak_of_any_step(setting):
    rows = by_subject([*rows_of("diffusers", 4.0, 2.0, 3.0), *rows_of("ours-fp32", 1.0)])
    *_, first, second = table(rows, setting).splitlines()
    cells = "3.00 (2.00..4.00) | 6.00 (4.00..8.00) | 1.00 x | 0.50 | 2.00 | 9.0 | - | 3"
    assert first == f"| diffusers | {cells} |"
    assert second.startswith("| ours-fp32 | 1.00 (1.00..1.00) | 2.00 (2.00..2.00) | 3.00 x |")


def test_float_contenders_that_differ_are_complained_about(tmp_path, capsys):
    outputs = {
        "diffusers": torch.ones(4),
        "ours-fp32": torch.ones(4) * 1.1,
        "ours-int8-dynamic": torch.zeros(4),
    }
    for name, output in outputs.items():
        torch.save(output, tmp_path / name)
    found = by_subject(errors({name: tmp_path / name for name in outputs}))
    said = "ours-fp32 differs from diffusers by 1.0e-01: they do not compute the same\n"
    assert capsys.readouterr().err == said
    assert found["ours-int8-dynamic"]["error"].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--only", "nobody"], "unknown contender 'nobody': use some of diffusers;"),
        (["--size", "100"], "pixels in steps of 64"),
        (["--rounds", "0"], "give 1 or more"),
        (["--device", "mars"], "unknown device 'mars'"),
    ],
)
def test_bad_requests_are_one_sentence(options, sentence, capsys):
    assert main(options) == 2
    assert sentence in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rounds_of_two_runs_add_up(setting, tmp_path, capsys):
    path = tmp_path / "r.json"
    options = ["--config", str(setting.config), "--folder", str(setting.folder), "--size", "64"]
    options += ["--threads", "1", "--only", "ours-fp32", "--rounds", "1", "--results", str(path)]
    for _ in range(2):
        assert main(options) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["values"]["wall"]["n"] for line in lines] == [2]
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 2 |")
