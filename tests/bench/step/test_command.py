"""bench.step: all contenders compute the same on the same weights, and its records add up."""

import json
import zlib
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from bench.step import command as step
from bench.step import results as step_results
from bench.step.contenders import CPU
from bench.step.openvino import ir_path
from bench.step.results import EQUAL, compare, read_results, step_table, write_results
from bench.step.setting import Setting, missing
from bench.step.weights import WEIGHTS
from bench.step.worker import decode_setting, encode_setting
from quantize.files.read import read_content
from quantize.selection import parse_rules
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


def drawn(kind, name, layer):
    return WEIGHTS[kind](name, layer.to("meta"))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_drawn_weight_depends_on_its_name_and_is_never_zero(kind):
    layers = {"linear": nn.Linear(8, 4), "conv": nn.Conv2d(8, 4, 3), "table": nn.Embedding(8, 4)}
    for layer in layers.values():
        first, again, other = (drawn(kind, name, layer) for name in ("a.weight", "a.weight", "b.weight"))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == layer.weight.shape
        assert first.count_nonzero() == first.numel()


def test_gaussian_weights_keep_the_variance_and_norms_are_near_one():
    linear, norm = nn.Linear(256, 64), nn.GroupNorm(5, 500)
    assert (drawn("gaussian", "a.weight", linear) @ torch.randn(256, 500)).std() == pytest.approx(1, rel=0.1)
    assert drawn("gaussian", "norm.weight", norm).mean() == pytest.approx(1, abs=0.05)
    assert drawn("gaussian", "norm.bias", norm).mean() == pytest.approx(0, abs=0.05)


def test_default_weights_are_those_of_a_fresh_layer_and_leave_other_generators_alone():
    layer = nn.Conv2d(16, 8, 3)
    torch.manual_seed(0)
    following = torch.rand(3)
    torch.manual_seed(0)
    weight, bias = (drawn("default", f"a.{what}", layer) for what in ("weight", "bias"))
    assert torch.equal(torch.rand(3), following)
    torch.manual_seed(zlib.crc32(b"a"))
    fresh = nn.Conv2d(16, 8, 3)
    assert torch.equal(weight, fresh.weight)
    assert torch.equal(bias, fresh.bias)
    assert torch.equal(drawn("default", "n.weight", nn.LayerNorm(8)), torch.ones(8))


def test_files_of_other_weights_rules_and_pictures_have_other_names(setting):
    files = setting.files
    others = [replace(files, kind="default"), replace(files, rules=("*=float",)), replace(files, pictures=2)]
    names = {one.quantized("int8_static", 64) for one in (files, *others)}
    assert len(names) == len(others) + 1
    assert files.weights != others[0].weights
    assert ir_path(files, "unet", "int8", 64, 2) != ir_path(others[0], "unet", "int8", 64, 2)


@pytest.mark.parametrize("rule", ["*.skip_connection=int8_weight", "*.proj_in=float"])
def test_a_ruled_contender_has_its_rules_and_the_codes_and_ranges_of_the_plain_one(rule, setting):
    ruled = replace(setting, rules=(rule,))
    contender, pattern = CPU["ours-int8-static-ruled"], rule.partition("=")[0]
    contender.prepare(ruled)
    (path,) = contender.files(ruled)
    plain = setting.files.quantized("int8_static", setting.size)
    layers, before = read_content(path).plan.layers, read_content(plain).plan.layers
    changed = {name for name in before if layers.get(name, "float") != before[name]}
    assert changed == {name for name in before if fnmatchcase(name, pattern)} != set()
    assert {layers.get(name, "float") for name in changed} == {rule.partition("=")[2]}
    tensors, old = load_file(path), load_file(plain)
    assert not any(f"{name}.in_scale" in tensors for name in changed)
    assert all(torch.equal(tensors[name], old[name]) for name in old if name in tensors)
    assert (
        EQUAL
        < relative_error(CPU["ours-int8-static-ruled"].load(ruled)()[0], computed("ours-fp32", setting)[0])
        < INT8
    )


def test_contenders_with_rules_take_part_where_there_are_some(setting):
    plain, args = step.chosen(step.parse_args([]), setting), step.parse_args(["--rule", "*=float"])
    assert not any(name.endswith("ruled") for name in plain)
    assert "ours-int8-static-ruled" in step.chosen(args, replace(setting, rules=("*=float",)))
    with pytest.raises(ValueError, match="give PATTERN=SCHEME"):
        parse_rules(["int8_weight"])


def test_a_setting_survives_the_command_line(setting):
    for one in (setting, replace(setting, weights="default", rules=("*.a=float", "*=int8_weight"))):
        assert decode_setting(encode_setting(one)) == one


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
    for other in ({"size": 128}, {"weights": "default"}, {"rules": ("*=float",)}):
        with pytest.raises(ValueError, match="was measured at .*'size': 64.*: name another file"):
            read_results(path, replace(setting, **other))
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
    monkeypatch.setattr("bench.step.setting.find_spec", lambda name: None)
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
        (["--rule", "int8_weight"], "give PATTERN=SCHEME"),
        (["--rule", "*=int9"], "unknown scheme 'int9'"),
        (["--only", "ours-int8-static-ruled"], "no contender is left to measure"),
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
