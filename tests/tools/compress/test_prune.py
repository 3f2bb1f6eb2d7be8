"""The command: weights go in, smaller ones come out, and everything that takes weights takes them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import generate
import tools.compress.quantize
from checkpoints.checkpoint import open_checkpoint
from cldm.model import load_model
from cldm.pipeline import Pipeline
from cldm.request import Request
from quantize.model import quantized_layers
from quantize.prune.masks import has_two_of_four, share_of_zeros
from tests.small_files import SIDE, write_small_model
from tools.compress.prune import main

SHARES = ["--heads", "0.25", "--mlp", "0.5", "--res", "0.25"]


def read_record(path):
    return open_checkpoint(path).pruning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model in half precision, as published ones are, and a sketch."""
    folder = tmp_path_factory.mktemp("model")
    write_small_model(folder)
    state = load_file(folder / "small.safetensors")
    halved = {n: t.half() if n.startswith(("model.", "control_model.")) else t for n, t in state.items()}
    save_file(halved, folder / "small.safetensors")
    (folder / "pictures").mkdir()
    Image.fromarray(sketch()).save(folder / "pictures" / "circle.png")
    return folder


def sketch():
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    picture[20:40, 20:22] = 0
    return picture


def run(folder, out, command, *flags):
    return main([command, str(folder / "small.yaml"), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def pruned(folder):
    assert run(folder, folder / "pruned.safetensors", "structured", *SHARES) == 0
    return folder / "pruned.safetensors"


def test_structured_weights_are_smaller_keep_their_type_and_say_how_they_were_made(folder, pruned):
    before, after = load_file(folder / "small.safetensors"), load_file(pruned)
    assert before.keys() == after.keys()
    assert {name: value.dtype for name, value in before.items()} == {n: v.dtype for n, v in after.items()}
    denoiser = [name for name in before if name.startswith(("model.", "control_model."))]
    sizes = [sum(state[name].nbytes for name in denoiser) for state in (before, after)]
    assert sizes[1] < 0.8 * sizes[0]
    record = read_record(pruned)
    assert record.steps[0]["mlp"] == 0.5
    assert set(record.counts.values()) == {6, 64, 128}  # of 8 heads or groups, of 128 and 256 channels
    assert record.sources.keys() == {"small.safetensors"}


def test_generate_takes_a_pruned_file_as_weights(folder, pruned, tmp_path):
    files = ["--config", str(folder / "small.yaml"), "--weights", str(pruned), "--device", "cpu"]
    what = ["--image", str(folder / "pictures/circle.png"), "--prompt", "a circle", "--steps", "2"]
    assert generate.main([*files, *what, "--out", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").size == (SIDE, SIDE)


def test_a_pruned_file_is_quantized_and_makes_nearly_the_same_picture(folder, pruned, tmp_path):
    out = tmp_path / "q.safetensors"
    flags = [
        "--weights",
        str(pruned),
        "--calibrate",
        str(folder / "pictures"),
        "--steps",
        "2",
        "--groups",
        "2",
    ]
    assert tools.compress.quantize.main([str(folder / "small.yaml"), "--out", str(out), *flags]) == 0
    full = Pipeline.from_files(folder / "small.yaml", pruned, device="cpu")
    small = Pipeline.from_files(folder / "small.yaml", quantized=out, device="cpu")
    assert len(list(quantized_layers(small.model))) > 100
    request = Request("circle", steps=2)
    expected, got = (one(sketch(), request).images[0].astype(float) for one in (full, small))
    assert np.abs(expected - got).mean() < 8


def test_taylor_looks_at_runs_and_one_order_over_all_layers_may_choose(folder, tmp_path):
    flags = ["--mlp", "0.5", "--by", "taylor", "--scope", "global", "--calibrate", str(folder / "pictures")]
    out = tmp_path / "t.safetensors"
    assert run(folder, out, "structured", *flags, "--steps", "2", "--groups", "1") == 0
    counts = read_record(out).counts
    assert len(set(counts.values())) > 2  # layers differ
    load_model(folder / "small.yaml", out)


def test_pruning_a_pruned_file_again_adds_up(folder, pruned, tmp_path):
    out = tmp_path / "twice.safetensors"
    assert run(folder, out, "2:4", "--weights", str(pruned)) == 0
    record = read_record(out)
    assert [step["how"] for step in record.steps] == ["structured", "2:4"]
    assert record.counts == read_record(pruned).counts
    model = load_model(folder / "small.yaml", out)
    assert len(record.masked) > 50
    assert all(has_two_of_four(model.get_submodule(name).weight) for name in record.masked)
    assert not any(name.startswith(("control_model.time_embed", "first_stage")) for name in record.masked)


def test_two_of_four_leaves_alone_what_quantization_does(folder, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert run(folder, out, "2:4") == 0
    assert "the file is no smaller for it" in capsys.readouterr().out
    before, after = load_file(folder / "small.safetensors"), load_file(out)
    layers = [f"{name}.weight" for name in read_record(out).masked]
    assert share_of_zeros([after[name] for name in layers]) == pytest.approx(0.5, abs=0.01)
    rest = before.keys() - set(layers)
    assert all(torch.equal(before[name], after[name]) for name in rest)
    assert "control_model.input_hint_block.0.weight" in rest
    assert not any("zero_convs" in name or "embedding" in name for name in layers)


def test_strip_leaves_the_weights_alone_and_may_halve_them(folder, tmp_path, capsys):
    state = load_file(folder / "small.safetensors")
    extra = {"model_ema.decay": torch.tensor(0.9), "loss.discriminator.weight": torch.ones(1000)}
    torch.save({"state_dict": state | extra, "optimizer_states": [torch.ones(1000)]}, tmp_path / "last.ckpt")
    out = tmp_path / "clean.safetensors"
    assert main(["strip", str(tmp_path / "last.ckpt"), "--out", str(out), "--half"]) == 0
    said = capsys.readouterr().out
    assert "losses of the autoencoder" in said
    assert re.search(r"[\d.]+ MiB before, [\d.]+ MiB after", said)
    after = load_file(out)
    assert after.keys() == state.keys()
    assert after["first_stage_model.decoder.conv_in.weight"].dtype == torch.float16
    assert after["betas"].dtype == torch.float32


@pytest.mark.slow  # a minute: scenes of 128 pixels, 16 a step
def test_finetuning_goes_on_where_it_stopped_keeps_zeros_and_refuses_other_weights(folder, tmp_path, capsys):
    masked, whole, halves = (tmp_path / f"{name}.safetensors" for name in ("masked", "whole", "halves"))
    assert run(folder, masked, "2:4") == 0
    common = ["--weights", str(masked), "--cache", "16", "--workers", "0", "--device", "cpu"]
    assert run(folder, whole, "finetune", *common, "--steps", "2") == 0
    for steps in ("1", "2"):
        assert run(folder, halves, "finetune", *common, "--steps", steps) == 0
    state = load_file(whole)
    # Half as many steps end at another learning rate: the same only where that was not yet reached.
    assert state.keys() == load_file(halves).keys()
    assert all(has_two_of_four(state[f"{name}.weight"]) for name in read_record(whole).masked)
    changed = [name for name, value in load_file(masked).items() if not torch.equal(value, state[name])]
    assert any(name.startswith("control_model.") for name in changed)
    assert any(name.startswith("model.diffusion_model.input_blocks") for name in changed)
    assert not any(name.startswith(("first_stage_model", "cond_stage_model")) for name in changed)
    assert [step["how"] for step in read_record(whole).steps] == ["2:4", "finetune"]
    other = [
        "--weights",
        str(whole),
        "--steps",
        "3",
        "--cache",
        "16",
        "--run",
        str(whole.with_suffix(".run")),
    ]
    assert run(folder, tmp_path / "other.safetensors", "finetune", *other) == 2
    assert "holds checkpoints of other weights" in capsys.readouterr().err


MISTAKES = {
    "nothing to prune": (["structured"], "nothing would go: give --heads, --mlp or --res a share"),
    "a share of all": (["structured", "--mlp", "1"], "a share of 1.0 cannot go"),
    "Taylor without pictures": (["structured", "--mlp", "0.5", "--by", "taylor"], "give --calibrate DIR"),
    "magnitudes of different layers": (
        ["structured", "--mlp", "0.5", "--scope", "global"],
        "add --by taylor",
    ),
    "another suffix": (["2:4", "--out", "q.ckpt"], r"pruned models are \.safetensors files"),
    "missing weights": (["2:4", "--weights", "none.safetensors"], "none.safetensors"),
    "its own source": (["2:4", "--out", "{source}"], "is the file that goes in"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(folder, tmp_path, capsys, mistake):
    (command, *flags), words = MISTAKES[mistake]
    names = {"source": folder / "small.safetensors"}
    code = run(folder, tmp_path / "q.safetensors", command, *(flag.format(**names) for flag in flags))
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert re.search(words, said.err)
    assert not list(tmp_path.iterdir())


def test_a_quantized_file_is_not_pruned(folder, tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    flags = ["--scheme", "int8_weight", "--out", str(out)]
    assert tools.compress.quantize.main([str(folder / "small.yaml"), *flags]) == 0
    capsys.readouterr()
    assert run(folder, tmp_path / "p.safetensors", "structured", "--mlp", "0.5", "--weights", str(out)) == 2
    assert "is quantized already" in capsys.readouterr().err
