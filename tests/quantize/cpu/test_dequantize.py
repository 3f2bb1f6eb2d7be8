"""Weights decoded natively are those of the formulas, to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import arithmetic, native
from quantize.arithmetic import dequantize_channels, quantize_int4, quantize_int8
from quantize.backends import cpu, make_backend
from quantize.backends.cpu import WeightOnly
from quantize.cpu.dequantize import dequantize_int4, dequantize_int8
from quantize.layers import quantize_layer
from quantize.schemes import LayerSpec
from tests.quantize.small_layers import LAYERS, layer_and_input

shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 150)),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
)


def weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(shapes)
def test_int8_weights_are_those_of_the_formula(shape):
    values, scale = quantize_int8(weight(shape))
    assert torch.equal(dequantize_int8(values, scale, shape), dequantize_channels(values, scale))


@settings(deadline=None, max_examples=60)
@given(shapes, st.sampled_from([32, 34, 64, 118, 128]))
def test_int4_weights_are_those_of_the_formula(shape, group):
    packed, scale = quantize_int4(weight(shape), group)
    assert torch.equal(
        dequantize_int4(packed, scale, shape), arithmetic.dequantize_int4(packed, scale, shape)
    )


def test_every_pair_of_levels_is_decoded():
    packed = torch.arange(256, dtype=torch.uint8).view(1, 4, 64)
    scale = torch.tensor([[1.0, -0.5, 3e-38, 1e30]]).bfloat16()
    assert torch.equal(dequantize_int4(packed, scale, (1, 512)), dequantize_int4(packed, scale, (1, 512)))


def test_every_int8_level_is_decoded():
    values, scale = torch.arange(-128, 128, dtype=torch.int8).view(2, 128), torch.tensor([0.1, -7.0])
    assert torch.equal(dequantize_int8(values, scale, values.shape), dequantize_channels(values, scale))


@pytest.mark.parametrize("strided", [False, True])
def test_without_a_library_and_with_strides_the_formulas_compute(strided, monkeypatch):
    if not strided:
        monkeypatch.setattr(native, "library", lambda: None)
    values, scale = quantize_int8(weight((6, 8)))
    values = values.t().contiguous().t() if strided else values
    assert torch.equal(dequantize_int8(values, scale, values.shape), dequantize_channels(values, scale))
    packed, scale = quantize_int4(weight((6, 8)), 32)
    assert torch.equal(dequantize_int4(packed, scale, (6, 8)), dequantize_int4(packed, scale, (6, 8)))


@pytest.mark.skipif(cpu.lacks(), reason="the backend asks for VNNI")
@pytest.mark.parametrize("scheme", ["int8_weight", "int4_group"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_the_cpu_decode_natively_and_answer_as_the_reference(name, scheme):
    layer, x = layer_and_input(name)
    assert isinstance(make_backend("cpu", LayerSpec.of(layer, scheme)), WeightOnly)
    reference, other = quantize_layer(layer, scheme), quantize_layer(layer, scheme)
    other.bind("cpu")
    assert torch.equal(other(x), reference(x))
    assert other.qweight is not None  # nothing is packed: the layer can still be saved
