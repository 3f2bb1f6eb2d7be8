"""The command: a float model goes in, a file and a table come out, and pictures are made from the file."""

import json
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open

import generate
import tools.compress.quantize
from cldm.pipeline import Pipeline
from cldm.request import Request
from quantize.files.read import read_content
from quantize.model import quantized_layers
from quantize.schemes import SCHEMES
from tests.small_files import SIDE, write_small_model

STEPS = ["--steps", "2", "--groups", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and two pictures of a sketch, one with a prompt beside it."""
    folder = tmp_path_factory.mktemp("model")
    write_small_model(folder)
    (folder / "pictures").mkdir()
    for name in ("circle", "red_star"):
        Image.fromarray(sketch()).save(folder / "pictures" / f"{name}.png")
    (folder / "pictures" / "circle.txt").write_text("a cyan circle")
    return folder


def sketch():
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    picture[20:40, 20:22] = 0
    return picture


def run(folder, out, *flags):
    """The command's exit code."""
    return tools.compress.quantize.main([str(folder / "small.yaml"), "--out", str(out), *STEPS, *flags])


@pytest.fixture(scope="module")
def static(folder):
    out = folder / "small-int8.safetensors"
    assert (
        run(folder, out, "--calibrate", str(folder / "pictures"), "--plan-out", str(folder / "plan.json"))
        == 0
    )
    return out


def test_the_table_has_all_parts_their_bytes_and_errors(folder, tmp_path, capsys):
    pictures = str(folder / "pictures")
    assert run(folder, tmp_path / "q.safetensors", "--decoder", "--calibrate", pictures) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:14].strip(): line.split()[-4:] for line in lines[1:-1]}
    assert rows.keys() == {"U-Net", "control branch", "autoencoder", "text encoder", "total"}
    for part, (_, before, after, error) in rows.items():
        assert float(after) < float(before)
        if part != "total":
            assert 15 < float(error) < 70
    assert lines[-1] == str(tmp_path / "q.safetensors")


def test_the_file_says_what_it_was_made_of(folder, static):
    content = read_content(static)
    assert content.sources.keys() == {"small.safetensors"}
    assert content.schedule.groups.count == 2
    assert content.plan.layers == json.loads((folder / "plan.json").read_text())["layers"]
    assert set(content.plan.layers.values()) == {"int8_static", "int8_dynamic", "int8_weight"}


def test_a_pipeline_from_the_file_makes_nearly_the_same_picture(folder, static):
    request = Request("a cyan circle", steps=4)
    full = Pipeline.from_files(folder / "small.yaml", device="cpu")
    small = Pipeline.from_files(folder / "small.yaml", device="cpu", quantized=static)
    assert len(list(quantized_layers(small.model))) == len(read_content(static).plan.layers)
    expected, got = (one(sketch(), request).images[0].astype(float) for one in (full, small))
    assert np.abs(expected - got).mean() < 8
    assert not np.array_equal(expected, got)


@pytest.mark.parametrize("scheme", [name for name, one in SCHEMES.items() if one.inputs != "static"])
def test_other_schemes_need_no_pictures(folder, tmp_path, capsys, scheme):
    assert run(folder, tmp_path / "q.safetensors", "--scheme", scheme) == 0
    assert "errors are measured on the pictures of --calibrate" in capsys.readouterr().out


def test_rules_and_plans_choose_the_schemes(folder, tmp_path):
    rules = [
        "--scheme",
        "int8_weight",
        "--rule",
        "control_model.*=float",
        "--rule",
        "*attn*=int4_group",
        "--compact",
    ]
    assert run(folder, tmp_path / "q.safetensors", *rules, "--plan-out", str(tmp_path / "p.json")) == 0
    layers = read_content(tmp_path / "q.safetensors").plan.layers
    assert not any(name.startswith("control_model.") for name in layers)
    attention = {scheme for name, scheme in layers.items() if name.startswith("model.") and "attn" in name}
    assert attention == {"int4_group"}
    assert run(folder, tmp_path / "again.safetensors", "--plan", str(tmp_path / "p.json")) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def test_generate_makes_the_picture_and_can_make_it_again(folder, static, tmp_path, capsys):
    picture = folder / "pictures" / "circle.png"
    flags = ["--config", str(folder / "small.yaml"), "--quantized", str(static), "--device", "cpu"]
    made = ["--image", str(picture), "--prompt", "a circle", "--steps", "2", "--out", str(tmp_path / "a.png")]
    assert generate.main([*flags, *made]) == 0
    assert generate.main(["--from", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png")]) == 0
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )


def test_steps_without_a_search_change_the_file_and_keep_the_errors_small(folder, tmp_path, capsys):
    flags = ["--scheme", "int4_group", "--calibrate", str(folder / "pictures")]
    for name, more in (("plain", ()), ("switched", ("--clip", "max"))):
        assert run(folder, tmp_path / f"{name}.safetensors", *flags, *more) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("U-Net")]
    plain, switched = (float(line.split()[-1]) for line in lines)
    assert plain != switched
    assert switched > plain - 6  # random weights have no outliers to win by
    assert read_content(tmp_path / "plain.safetensors").clip == "mse"
    assert read_content(tmp_path / "switched.safetensors").clip == "max"


@pytest.fixture(scope="module")
def noise(folder):
    """What was measured of the small model's layers under int4."""
    assert measure(folder, folder / "noise.json") == 0
    return folder / "noise.json"


def measure(folder, noise, *flags):
    """The exit code of a measurement without --out; few layers, so that it is quick."""
    few = [
        "--rule",
        "*attn1.to_*=int4_group",
        "--rule",
        "*input_hint_block.2=int4_group",
        "--rule",
        "*=float",
    ]
    given = [str(folder / "small.yaml"), *STEPS, *few, "--calibrate", str(folder / "pictures")]
    return tools.compress.quantize.main([*given, "--sensitivity", str(noise), *flags])


def test_every_layer_of_the_plan_is_measured(noise):
    effects = json.loads(noise.read_text())["effects"]
    assert {one["probe"] for one in effects.values()} == {"U-Net under control"}
    assert "control_model.input_hint_block.2" in effects
    for one in effects.values():
        assert one["noise"]["int4_group"] > one["noise"]["int8_weight"] > 0


def test_a_budget_of_either_kind_makes_a_plan_that_keeps_it(folder, noise, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    assert measure(folder, noise, "--plan-out", str(plan)) == 0
    said = capsys.readouterr().out
    smallest = float(re.search(r"([\d.]+) -> [\d.]+ MiB", said)[1])
    expected = float(re.search(r"U-Net under control  ([\d.]+) ->", said)[1])
    mib, db = smallest + 0.02, expected + 6
    for flags in (["--budget-mib", str(mib)], ["--budget-db", str(db)]):
        assert measure(folder, noise, *flags, "--plan-out", str(plan)) == 0
        assert "int8_weight" in json.loads(plan.read_text())["layers"].values()
        out = tmp_path / "q.safetensors"
        assert run(folder, out, "--plan", str(plan), "--calibrate", str(folder / "pictures")) == 0
        if flags[0] == "--budget-mib":
            assert out.stat().st_size <= mib * 2**20
            assert out.stat().st_size > (mib - 0.02) * 2**20
        said = capsys.readouterr().out
        if flags[0] == "--budget-db":
            assert float(re.findall(r"-> ([\d.]+)", said)[0]) >= db


def test_a_stopped_measurement_says_where_it_is_kept(folder, tmp_path, capsys, monkeypatch):
    import tools.compress.sensitivity

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tools.compress.sensitivity, "measure", stop)
    assert measure(folder, tmp_path / "noise.json") == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"stopped; what was measured is in {tmp_path / 'noise.json'}: the same command goes on"


BUDGETS = {
    "too few bytes": (["--budget-mib", "0.1"], "the smallest plan takes"),
    "too little noise": (["--budget-db", "90"], r"the best plan has \d"),
    "no number": (["--budget-mib", "nan"], "give a number above 0"),
    "less than nothing": (["--budget-db", "-3"], "--budget-db -3: give a number above 0"),
    "two budgets": (["--budget-mib", "3", "--budget-db", "20"], "give one"),
    "other settings": (["--steps", "3"], "other settings"),
}


@pytest.mark.parametrize("mistake", BUDGETS)
def test_a_budget_that_cannot_be_is_one_sentence(folder, noise, tmp_path, capsys, mistake):
    flags, words = BUDGETS[mistake]
    assert measure(folder, noise, *flags, "--plan-out", str(tmp_path / "plan.json")) == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


MISTAKES = {
    "a measurement without pictures": (
        ["--scheme", "int4_group", "--sensitivity", "n.json"],
        "--sensitivity looks at the model at work",
    ),
    "a rule without a scheme": (["--rule", "control_model.*"], "give PATTERN=SCHEME"),
    "a plan for nowhere": (
        ["--scheme", "int8_weight", "--plan-out", "{empty}/none/p.json"],
        "create it first",
    ),
    "a plan that is not text": (["--plan", "{source}"], "is no JSON: it is not UTF-8 text"),
    "a budget without a place": (
        ["--sensitivity", "n.json", "--budget-db", "20", "--calibrate", "{pictures}"],
        "say where it goes by --plan-out",
    ),
    "an unknown scheme": (["--scheme", "int3"], "unknown scheme 'int3': use one of int8_weight"),
    "static without pictures": ([], "give --calibrate DIR"),
    "an empty folder": (["--calibrate", "{empty}"], "has no pictures"),
    "no folder": (["--calibrate", "{empty}/none"], "no such folder"),
    "another suffix": (["--scheme", "int8_weight", "--out", "q.ckpt"], r"name it q\.safetensors"),
    "a missing plan": (["--plan", "{empty}/p.json"], "no plan"),
    "too many groups": (["--groups", "2000", "--scheme", "int8_weight"], "ask for 1 to 1000"),
    "an unknown rule": (["--rule", "*=int3"], "unknown scheme 'int3'"),
    "quantizing twice": (["--weights", "{static}"], "is quantized already"),
    "its own source": (["--out", "{source}", "--scheme", "int8_weight"], "is the file that goes in"),
}


def test_a_command_that_would_write_nothing_is_one_sentence(folder, capsys):
    assert tools.compress.quantize.main([str(folder / "small.yaml"), "--scheme", "int8_weight"]) == 2
    assert "nothing to write: give --out FILE.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(folder, static, tmp_path, capsys, mistake):
    flags, words = MISTAKES[mistake]
    names = {"empty": tmp_path, "static": static, "source": folder / "small.safetensors"}
    names["pictures"] = folder / "pictures"
    before = (folder / "small.safetensors").read_bytes()
    code = run(folder, tmp_path / "q.safetensors", *(flag.format(**names) for flag in flags))
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert re.search(words, said.err)
    assert not list(tmp_path.glob("*.safetensors"))
    assert (folder / "small.safetensors").read_bytes() == before


def test_weights_with_nan_are_named(folder, tmp_path, capsys):
    with safe_open(folder / "small.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in list(file.keys())}
    state["control_model.input_blocks.1.0.in_layers.2.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.ckpt")
    pictures = ["--calibrate", str(folder / "pictures")]
    for flags in (["--scheme", "int8_weight"], pictures):
        given = ["--weights", str(tmp_path / "nan.ckpt"), *flags]
        assert run(folder, tmp_path / "q.safetensors", *given) == 2
        assert "control_model.input_blocks.1.0.in_layers.2: a weight has 1 values" in capsys.readouterr().err
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize(
    ("weights", "extra"), [((), {"loras": [("some.safetensors", 1.0)]}), (("small.safetensors",), {})]
)
def test_other_weights_beside_a_quantized_file_are_refused(folder, static, weights, extra):
    with pytest.raises(ValueError, match="holds all weights already"):
        Pipeline.from_files(folder / "small.yaml", *weights, quantized=static, device="cpu", **extra)


def test_a_quantized_file_given_as_weights_is_told_its_flag(folder, static, tmp_path, capsys):
    flags = [
        "--config",
        str(folder / "small.yaml"),
        "--weights",
        str(static),
        "--out",
        str(tmp_path / "a.png"),
    ]
    picture = str(folder / "pictures" / "circle.png")
    assert generate.main([*flags, "--image", picture, "--prompt", "a circle", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"{static} is a quantized file: give it by --quantized" in said
    assert said.count("\n") == 1


def test_a_quantized_file_for_another_yaml_is_refused(folder, static, tmp_path):
    config = OmegaConf.load(folder / "small.yaml")
    config.model.params.unet_config.params.num_res_blocks = 1
    OmegaConf.save(config, tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="is for another model"):
        Pipeline.from_files(tmp_path / "other.yaml", quantized=static, device="cpu")
