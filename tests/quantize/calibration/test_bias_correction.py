"""Bias correction takes out what is wrong on average, and nothing else."""

import pytest
import torch
from torch import nn

from quantize.calibration.bias_correction import Means, correctable, corrected_biases, mean_output
from quantize.calibration.ranges import watch_inputs
from quantize.layers import quantize_layer
from quantize.model import quantize_
from quantize.selection import Rule, Selection, make_plan
from tests.quantize.small_layers import LAYERS, layer_and_input

SCHEME = "int4_group"  # its mean errors are large enough to see


def holder(layer):
    return nn.Sequential(layer).eval().requires_grad_(False)


def seen(model, *inputs):
    means = Means(model)
    with watch_inputs(model, ["0"], means.see):
        for x in inputs:
            model(x)
    return means


def plan_of(model):
    return make_plan(model, Selection((Rule("*", SCHEME),), min_weights=0))


def mean_error(got, expected, layer):
    channels = -1 if isinstance(layer, nn.Linear) else 1
    return (got - expected).movedim(channels, -1).flatten(0, -2).mean(dim=0)


@pytest.mark.parametrize(
    "name", [name for name in LAYERS if "no bias" not in name and "one axis" not in name]
)
def test_the_mean_error_of_every_channel_goes(name):
    layer, x = layer_and_input(name)
    model = holder(layer)
    expected, plan, means = model(x), plan_of(model), seen(model, x)
    quantize_(plain := holder(layer_and_input(name)[0]), plan, backend="reference")
    wrong = mean_error(plain(x), expected, layer)
    changed = corrected_biases(model, plan, means)
    assert changed.keys() == {"0.bias"}
    plain[0].bias = nn.Parameter(changed["0.bias"], requires_grad=False)
    left = mean_error(plain(x), expected, layer)
    assert wrong.abs().max() > 1e-4
    assert left.abs().max() < 1e-5 + 1e-4 * wrong.abs().max()  # what is left is rounding


def test_a_known_offset_is_removed():
    """Weights that are rounded down everywhere, on inputs that are all 1, lose the same at every output."""
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.fill_(0.3)
        layer.weight[:, 0] = 8.0  # level -8, of a step of -1: 0.3 becomes 0
        layer.bias.zero_()
    model, x = holder(layer), torch.ones(5, 64)
    plan = plan_of(model)
    offset = corrected_biases(model, plan, seen(model, x), "max")["0.bias"]
    assert torch.allclose(offset, torch.full((8,), 63 * 0.3), atol=1e-4)


def test_means_are_of_everything_that_was_seen():
    model = holder(nn.Linear(4, 2))
    many = torch.randn(3, 7, 4)
    assert torch.allclose(seen(model, many[0], many[1:]).of("0"), many.flatten(0, 1).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LAYERS if "one axis" not in name])
def test_the_mean_output_follows_from_the_mean_input(name):
    layer, x = layer_and_input(name)
    model = holder(layer)
    out = model(x) if layer.bias is None else model(x) - model[0].bias.view(-1, *[1] * (x.ndim == 4) * 2)
    expected = mean_error(out, torch.zeros_like(out), layer)
    assert torch.allclose(mean_output(layer.weight, seen(model, x).of("0")), expected, atol=1e-5)


def test_layers_without_a_bias_or_never_called_stay_as_they_are():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64)).requires_grad_(False)
    plan = plan_of(model)
    assert correctable(model, plan) == ["1"]
    assert corrected_biases(model, plan, Means(model)) == {}


def test_nan_is_named():
    layer, x = layer_and_input("linear")
    model = holder(layer)
    means, plan = seen(model, x), plan_of(model)
    model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="^0: a weight has 1 values"):
        corrected_biases(model, plan, means)
    with pytest.raises(ValueError, match="an input of 0 has"):
        seen(model, torch.full((1, 96), torch.inf))


def test_what_is_corrected_is_what_the_layer_will_hold():
    layer, x = layer_and_input("conv 3x3")
    model = holder(layer)
    for clip in ("mse", "max"):
        biases = corrected_biases(model, plan_of(model), seen(model, x), clip)
        made = quantize_layer(layer, SCHEME, clip=clip)
        made.bias = nn.Parameter(biases["0.bias"], requires_grad=False)
        assert mean_error(made(x), layer(x), layer).abs().max() < 1e-5
