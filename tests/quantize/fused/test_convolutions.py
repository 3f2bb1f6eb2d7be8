"""A convolution that upsamples computes what bytes, repeated and convolved, would give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantize import native
from quantize.arithmetic import dequantize_channels, sqnr_db
from quantize.fused import convolutions
from quantize.fused.convolutions import UpsampledConv2d
from quantize.layers import quantize_layer

FLOAT32_DB = 120  # sums of the same integers, rounded in another order
# Batch, inputs, outputs, height, width: one pixel, whole vectors, and what is left of one.
SIZES = [(1, 4, 16, 1, 1), (2, 16, 32, 4, 6), (1, 5, 7, 3, 1), (3, 8, 33, 5, 2)]
CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, no bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "5x5": {"kernel_size": 5, "padding": 2},
    "1x1": {"kernel_size": 1},
    "3x3 of stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "3x3 without padding": {"kernel_size": 3},
}


def layers(scheme="int8_static", inputs=8, outputs=24, **convolution):
    """A layer of the reference, and one that upsamples."""
    torch.manual_seed(inputs + outputs)
    convolution = convolution or CONVOLUTIONS["3x3"]
    plain = quantize_layer(nn.Conv2d(inputs, outputs, **convolution), scheme, [(-2.0, 4.0)])
    return plain, upsampled(plain)


def upsampled(layer):
    made = copy.deepcopy(layer)
    made.__class__ = UpsampledConv2d
    made.bind("cpu")
    return made


def picture(*shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.contiguous(memory_format=torch.channels_last)


def repeated(layer, x):
    """The layer in plain torch on the bytes of x, read as numbers."""
    weight = dequantize_channels(layer.qweight, layer.scale).double()
    bias = None if layer.bias is None else layer.bias.double()
    numbers = F.interpolate(layer.quantize_input(x).float().double(), scale_factor=2.0, mode="nearest")
    return layer.spec.apply(numbers, weight, bias)


def needs_library():
    if native.library() is None:
        pytest.skip("no native library")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("band", [1, 1 << 13, 1 << 30])
def test_all_sizes_in_all_bands_give_the_layer_of_repeated_bytes(size, band, monkeypatch):
    batch, inputs, outputs, height, width = size
    plain, layer = layers("int8_static", inputs, outputs)
    monkeypatch.setattr(convolutions, "BAND_BYTES", band)
    x = picture(batch, inputs, height, width)
    out = layer(x)
    assert out.shape == (batch, outputs, 2 * height, 2 * width)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert sqnr_db(repeated(plain, x), out) > FLOAT32_DB


@pytest.mark.parametrize("kernels", [True, False], ids=["native", "plain torch"])
@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_convolution_may_upsample(name, scheme, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(native, "function", lambda *_: None)
    plain, layer = layers(scheme, **CONVOLUTIONS[name])
    x = picture(2, 8, 6, 5)
    assert sqnr_db(repeated(plain, x), layer(x)) > FLOAT32_DB
    assert torch.equal(layer(x), layer(layer.quantize_input(x)))


def test_no_picture_gives_no_picture():
    assert layers()[1](picture(2, 8, 4, 4)[:0]).shape == (0, 24, 8, 8)


def test_half_precision_comes_back_as_such():
    assert layers()[1](picture(1, 8, 2, 2).bfloat16()).dtype == torch.bfloat16


def test_the_number_of_threads_changes_nothing():
    _, layer = layers("int8_static", 40, 200)
    x, outs, before = picture(2, 40, 24, 24), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outs[0], out) for out in outs)


def test_codes_go_when_taps_are_packed_and_are_packed_once():
    needs_library()
    _, layer = layers()
    layer.prepare()
    taps = layer._taps
    assert layer.qweight is None
    layer(picture(1, 8, 2, 2))
    assert layer._taps is taps
    assert not layer._compute.packed  # the backend's form would be a second one
    with pytest.raises(ValueError, match="save before the first call"):
        layer.state_dict()
