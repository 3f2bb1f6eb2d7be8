"""Layers take activations that are bytes already, and answer as if they had made them themselves."""

import copy

import pytest
import torch

from quantize.activations import Quantized, qparams_of, quantize_uint8, range_of
from quantize.arithmetic import sqnr_db
from quantize.backends import BACKENDS, cpu
from quantize.layers import quantize_layer
from quantize.schemes import SCHEMES
from tests.quantize.small_layers import LAYERS, layer_and_input, ranges_for, timestep_group

BYTES = [name for name, scheme in SCHEMES.items() if scheme.weights == "int8" and scheme.inputs != "float"]


def quantized_layer(name, scheme, backend="reference"):
    if backend == "cpu" and cpu.lacks():
        pytest.skip(cpu.lacks())
    layer, x = layer_and_input(name)
    made = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    made.bind(backend)
    return made, x


def quantize_input(x, qparams=None):
    qparams = qparams or qparams_of(*range_of(x))
    return Quantized(quantize_uint8(x, qparams), qparams)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
@pytest.mark.parametrize("scheme", BYTES)
@pytest.mark.parametrize("name", LAYERS)
def test_bytes_give_what_the_floats_give_that_they_were_made_of(name, scheme, backend):
    layer, x = quantized_layer(name, scheme, backend)
    out = layer(quantize_input(x, layer.input_qparams()))
    assert out.dtype == torch.float32
    assert torch.equal(out, layer(x))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
@pytest.mark.parametrize("scheme", ["int8_weight", *BYTES])
@pytest.mark.parametrize("name", LAYERS)
def test_an_output_is_added_to_what_is_there(name, scheme, backend):
    layer, x = quantized_layer(name, scheme, backend)
    out = layer(x)
    total = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    laid_out = [total.clone()]
    if out.ndim == 4:
        laid_out.append(total.contiguous(memory_format=torch.channels_last).clone())
    for onto in laid_out:
        assert sqnr_db(total + out, layer(x, onto=onto)) > 130  # one rounding more or less
    half = layer(x, onto=total.bfloat16())
    assert sqnr_db(total + out, half) > 40


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
@pytest.mark.parametrize("scheme", BYTES)
@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_the_weights_do_not_fit_is_refused(name, scheme, backend):
    layer, x = quantized_layer(name, scheme, backend)
    axis = 1 if x.ndim == 4 else -1
    for wrong in (x.narrow(axis, 0, x.shape[axis] - 1), torch.cat([x, x], dim=axis)):
        for given in (wrong, quantize_input(wrong, layer.input_qparams())):
            with pytest.raises(ValueError, match="inputs"):
                layer(given)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
def test_a_picture_without_a_batch_is_refused(backend):
    layer, x = quantized_layer("conv 3x3", "int8_dynamic", backend)
    with pytest.raises(ValueError, match="inputs"):
        layer(x[0])


def test_nothing_is_added_to_nothing():
    layer, x = quantized_layer("conv 1x1, no bias", "int8_dynamic", "cpu")
    assert layer(x[:0], onto=layer(x)[:0]).shape == layer(x)[:0].shape


def test_only_int8_by_int8_takes_bytes():
    taken = {scheme: quantized_layer("linear", scheme)[0].accepts_quantized for scheme in SCHEMES}
    assert [scheme for scheme, takes in taken.items() if takes] == BYTES


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in BYTES])
def test_other_layers_decode_bytes_that_they_are_given(scheme):
    layer, x = quantized_layer("linear", scheme)
    given = quantize_input(x)
    assert sqnr_db(layer(given.float()), layer(given)) > 110


def test_a_dynamic_layer_leaves_the_range_to_the_input():
    assert quantized_layer("linear", "int8_dynamic")[0].input_qparams() is None


def test_the_qparams_are_those_of_the_group_of_timesteps_and_of_the_tensors_that_are_there():
    layer, x = layer_and_input("linear")
    ranges = [(-3.0, 3.0), (-9.0, 2.0), (0.0, 5.0)]
    made = quantize_layer(layer, "int8_static", ranges)
    for group, (low, high) in ((None, ranges[0]), (0, ranges[1]), (1, ranges[2])):
        with timestep_group(group):
            qparams = made.input_qparams()
            assert qparams.scale == pytest.approx(qparams_of(low, high).scale)
            assert qparams.zero == qparams_of(low, high).zero
    other = copy.deepcopy(made)
    other.in_scale = made.in_scale * 2
    assert other.input_qparams().scale == 2 * made.input_qparams().scale
    assert torch.equal(made(x), made(quantize_input(x, made.input_qparams())))


@pytest.mark.parametrize("name", ["conv 1x1, no bias", "conv 3x3"])
def test_a_convolution_keeps_positions_together_for_the_next_one(name):
    """Channels last: what attention reads as tokens is the same memory."""
    layer, x = quantized_layer(name, "int8_dynamic", "cpu")
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
