"""Random weights and the files made of them: every tensor from its name, every file by its name."""

import zlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.files import Files, converted
from bench.random_weights import WEIGHTS
from ldm.config import create_meta_model
from quantize.files.read import read_content
from tests.small_files import write_small_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return Files(write_small_model(folder), folder)


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


def test_files_of_other_weights_and_rules_have_other_names(files):
    others = [replace(files, kind="default"), replace(files, rules=("*=float",))]
    names = {one.quantized("int8_static", 64) for one in (files, *others)}
    assert len(names) == len(others) + 1
    assert files.weights != others[0].weights


def test_a_float_file_holds_every_tensor_of_the_model_and_is_made_once(files):
    path = files.make_weights()
    time = path.stat().st_mtime_ns
    assert {name: t.shape for name, t in load_file(path).items()} == {
        name: t.shape for name, t in create_meta_model(files.config).state_dict().items()
    }
    assert files.make_weights().stat().st_mtime_ns == time
    assert dict(files.tensors()).keys() == load_file(path).keys()


def test_static_files_have_ranges_by_groups_of_timesteps(files):
    static = files.make_quantized("int8_static", 64)
    content = read_content(static)
    assert len(content.schedule.groups.edges) == 3
    assert "int8_static" in content.plan.layers.values()


def test_another_form_and_dtype_has_the_same_numbers(files, tmp_path):
    path = converted(files.make_weights(), tmp_path / "w.ckpt", torch.float16)
    state = torch.load(path, weights_only=True)["state_dict"]
    for name, tensor in files.tensors():
        expected = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(state[name], expected)
