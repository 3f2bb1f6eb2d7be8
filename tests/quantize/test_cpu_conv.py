"""The native convolution of bytes: exact sums, any walk and size, any number of threads."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantize import native
from quantize.activations import QParams, Quantized
from quantize.arithmetic import sqnr_db
from quantize.backends import cpu, cpu_packed
from quantize.layers import quantize_layer
from quantize.schemes import Geometry

AFFINE = QParams(0.03, 117)
FLOAT32 = 1e-6
SAME = Geometry((1, 1), (1, 1), (1, 1), 1)
# Batch, height, width, inputs, outputs, taps and walk: less than a tile, more positions than a task takes,
# taps with more weights than a block, panels that are not full, more border than picture, and none.
CASES = [
    (1, 1, 1, 4, 1, (3, 3), SAME),
    (2, 8, 9, 8, 64, (3, 3), SAME),
    (1, 17, 19, 12, 33, (3, 3), SAME),
    (2, 3, 2, 1600, 96, (3, 3), SAME),
    (1, 6, 7, 3200, 40, (1, 2), Geometry((1, 1), (0, 0), (1, 1), 1)),
    (2, 11, 9, 8, 70, (3, 2), Geometry((2, 1), (2, 0), (2, 1), 1)),
    (1, 2, 3, 4, 5, (3, 3), Geometry((1, 2), (5, 4), (1, 1), 1)),
    (3, 9, 9, 4, 128, (5, 5), Geometry((3, 2), (0, 1), (1, 2), 1)),
]


@pytest.fixture(autouse=True)
def library():
    if native.library() is None or cpu.lacks():
        pytest.skip("no native library")


def operands(batch, height, width, inputs, outputs, taps):
    noise = torch.Generator().manual_seed(inputs + outputs)
    values = torch.randint(0, 256, (batch, height, width, inputs), dtype=torch.uint8, generator=noise)
    weight = torch.randint(-127, 128, (outputs, inputs, *taps), dtype=torch.int8, generator=noise)
    scale, bias = torch.rand(outputs, generator=noise) + 0.1, torch.randn(outputs, generator=noise)
    return Quantized(values, AFFINE), weight, scale, bias


def expected(x, weight, scale, bias, walk):
    numbers = x.values.permute(0, 3, 1, 2).double() - AFFINE.zero
    sums = F.conv2d(numbers, weight.double(), None, walk.stride, walk.padding, walk.dilation)
    out = sums.permute(0, 2, 3, 1) * AFFINE.scale * scale
    return out if bias is None else out + bias


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_sums_are_exact(case, with_bias):
    *sizes, walk = case
    x, weight, scale, bias = operands(*sizes)
    bias = bias if with_bias else None
    exact = expected(x, weight, scale, bias, walk)
    packed = cpu_packed.pack_conv(weight, walk)
    out = packed.multiply(x, scale, bias, None)
    assert out.shape == exact.shape
    assert torch.allclose(out.double(), exact, rtol=FLOAT32, atol=FLOAT32 * exact.abs().max().item())
    onto = torch.randn(out.shape)
    total = packed.multiply(x, scale, bias, onto.clone())
    assert torch.allclose(total, out + onto, rtol=FLOAT32, atol=FLOAT32)


def test_an_empty_batch_gives_an_empty_answer():
    x, weight, scale, bias = operands(0, 4, 4, 8, 16, (3, 3))
    assert cpu_packed.pack_conv(weight, SAME).multiply(x, scale, bias, None).shape == (0, 4, 4, 16)


def test_pictures_smaller_than_the_kernel_are_refused():
    x, weight, scale, bias = operands(1, 2, 9, 4, 8, (3, 3))
    packed = cpu_packed.pack_conv(weight, Geometry((2, 2), (0, 0), (1, 1), 1))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        packed.multiply(x, scale, bias, None)


def test_the_number_of_threads_changes_nothing():
    x, weight, scale, bias = operands(2, 20, 20, 64, 160, (3, 3))
    outs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(cpu_packed.pack_conv(weight, SAME).multiply(x, scale, bias, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize(("inputs", "groups"), [(8, 2), (6, 1), (3, 1)])
def test_other_convolutions_are_left_to_onednn(inputs, groups):
    weight = torch.ones(8, inputs // groups, 3, 3, dtype=torch.int8)
    assert cpu_packed.pack_conv(weight, Geometry((1, 1), (1, 1), (1, 1), groups)) is None


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_without_the_library_onednn_gives_the_same(scheme, monkeypatch):
    layer, x = quantize_layer(nn.Conv2d(8, 24, 3, padding=1), scheme, [(-4.0, 4.0)]), torch.randn(2, 8, 9, 9)
    other = copy.deepcopy(layer)
    layer.bind("cpu")
    with_it = layer(x)
    assert isinstance(layer._compute._packed, cpu_packed.PackedConv)
    monkeypatch.setattr(native, "function", lambda *_: None)
    other.bind("cpu")
    assert sqnr_db(with_it, other(x)) > 120
    assert not isinstance(other._compute._packed, cpu_packed.PackedConv)
