"""Narrow files hold scales and floats in two bytes, load into the same numbers, and say what does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from quantize.arithmetic import CLIPS
from quantize.files.read import load_quantized
from quantize.files.write import Content, file_size, write_quantized
from quantize.model import quantize_
from quantize.schemes import SCHEMES, WEIGHT_FORMATS
from quantize.selection import default_selection, make_plan
from tests.quantize.small_networks import network

SCHEMES_WITHOUT_PICTURES = [name for name, one in SCHEMES.items() if one.inputs != "static"]


def half(model):
    """The same network with weights that half precision holds."""
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    return model


def written(folder, scheme="int8_weight", model=None, *, narrow=False):
    model = model or half(network())
    content = Content(replace(make_plan(model, default_selection(scheme)), narrow=narrow))
    return write_quantized(folder / "q.safetensors", model, model.state_dict().items(), content), content


def loaded(path, **options):
    with torch.device("meta"):
        model = network()
    content = load_quantized(model, path, backend="reference", **options)
    return model, content


@pytest.mark.parametrize("scheme", SCHEMES_WITHOUT_PICTURES)
def test_a_narrow_file_loads_into_the_numbers_that_were_quantized(tmp_path, scheme):
    path, content = written(tmp_path, scheme, narrow=True)
    expected, (got, read) = half(network()), loaded(path)
    quantize_(expected, content.plan, backend="reference")
    assert read == content
    for name, tensor in expected.state_dict().items():
        assert got.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(got.state_dict()[name].float(), tensor.float()), name


def test_a_narrow_file_has_two_bytes_for_scales_and_floats_but_not_for_constants(tmp_path):
    path, content = written(tmp_path, narrow=True)
    wide, _ = written(tmp_path / "wide")
    found, before = load_file(path), load_file(wide)
    parameters = dict(network().named_parameters())
    for name, tensor in found.items():
        kind = torch.float16 if name in parameters else before[name].dtype
        assert tensor.dtype == (torch.bfloat16 if name.endswith(".scale") else kind), name
    assert found["betas"].dtype == torch.float32
    saved = sum(before[name].nbytes - tensor.nbytes for name, tensor in found.items())
    halved = [one for name, one in before.items() if found[name].dtype != one.dtype]
    assert saved == sum(one.nbytes for one in halved) // 2 > 0
    assert file_size(network(), content) == path.stat().st_size


def test_float_weights_in_single_precision_lose_what_eleven_bits_lose(tmp_path):
    path, _ = written(tmp_path, model=network(), narrow=True)
    got = dict(loaded(path)[0].named_parameters())
    for name, tensor in network().named_parameters():
        if name in got:
            assert torch.allclose(got[name], tensor, rtol=2**-11, atol=2**-25), name


def test_the_asked_dtype_wins_over_the_file(tmp_path):
    path, _ = written(tmp_path, narrow=True)
    model, _ = loaded(path, dtype=torch.bfloat16)
    assert model.time_embed[0].weight.dtype == torch.bfloat16
    assert model.mix.scale.dtype == model.betas.dtype == torch.float32


def test_files_of_the_first_format_load(tmp_path):
    path, content = written(tmp_path)
    expected = loaded(path)[0].state_dict()
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["quantize"])
    said["version"] = 1
    del said["plan"]["narrow"]
    save_file(load_file(path), path, {"quantize": json.dumps(said)})
    model, read = loaded(path)
    assert read == content
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.nan, "middle.2: a bias has 1 values that are NaN or infinite"),
        (torch.inf, "middle.2: a bias has 1 values that are NaN or infinite"),
        (7e4, r"middle\.2\.bias goes beyond 65504, the most that two bytes hold: leave out --compact"),
    ],
)
def test_what_cannot_be_stored_is_named_and_leaves_no_file(tmp_path, value, words):
    model = network()
    model.middle[2].bias.data[0] = value
    with pytest.raises(ValueError, match=words):
        written(tmp_path, model=model, narrow=True)
    assert list(tmp_path.iterdir()) == []


def test_constants_may_be_infinite(tmp_path):
    model = network()
    model.betas[0] = torch.inf
    path, _ = written(tmp_path, model=model, narrow=True)
    assert loaded(path)[0].betas[0] == torch.inf


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_every_scale_is_a_number_of_bfloat16(weights, clip):
    weight = nn.Conv2d(64, 32, 3).weight.detach() * torch.logspace(-30, 20, 32)[:, None, None, None]
    scale = WEIGHT_FORMATS[weights].quantize(weight, 64, clip)[1]
    assert torch.equal(scale.float(), scale.bfloat16().float())
    assert scale.isfinite().all()
