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
import quantize.__main__
from cldm.pipeline import Pipeline
from cldm.request import Request
from quantize.loading import read_content
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
    return quantize.__main__.main([str(folder / "small.yaml"), "--out", str(out), *STEPS, *flags])


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


MISTAKES = {
    "an unknown scheme": (["--scheme", "int3"], "unknown scheme 'int3': use one of int8_weight"),
    "static without pictures": ([], "give --calibrate DIR"),
    "an empty folder": (["--calibrate", "{empty}"], "has no pictures"),
    "no folder": (["--calibrate", "{empty}/none"], "no such folder"),
    "an unknown rule of ranges": (["--ranges", "median"], "median: use one of minmax, percentile, mse"),
    "another suffix": (["--scheme", "int8_weight", "--out", "q.ckpt"], r"name it q\.safetensors"),
    "a missing plan": (["--plan", "{empty}/p.json"], "no plan"),
    "too many groups": (["--groups", "2000", "--scheme", "int8_weight"], "ask for 1 to 1000"),
    "an unknown rule": (["--rule", "*=int3"], "unknown scheme 'int3'"),
    "quantizing twice": (["--weights", "{static}"], "is quantized already"),
    "its own source": (["--out", "{source}", "--scheme", "int8_weight"], "is the file that goes in"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(folder, static, tmp_path, capsys, mistake):
    flags, words = MISTAKES[mistake]
    names = {"empty": tmp_path, "static": static, "source": folder / "small.safetensors"}
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
    flags = ["--weights", str(tmp_path / "nan.ckpt"), "--scheme", "int8_weight"]
    assert run(folder, tmp_path / "q.safetensors", *flags) == 2
    assert "control_model.input_blocks.1.0.in_layers.2: a weight has 1 values" in capsys.readouterr().err
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize(
    ("weights", "extra"), [((), {"loras": [("some.safetensors", 1.0)]}), (("small.safetensors",), {})]
)
def test_other_weights_beside_a_quantized_file_are_refused(folder, static, weights, extra):
    with pytest.raises(ValueError, match="holds all weights already"):
        Pipeline.from_files(folder / "small.yaml", *weights, quantized=static, device="cpu", **extra)


def test_a_quantized_file_for_another_yaml_is_refused(folder, static, tmp_path):
    config = OmegaConf.load(folder / "small.yaml")
    config.model.params.unet_config.params.num_res_blocks = 1
    OmegaConf.save(config, tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="is for another model"):
        Pipeline.from_files(tmp_path / "other.yaml", quantized=static, device="cpu")
