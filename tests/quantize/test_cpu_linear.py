"""The native product of bytes: exact sums, gates to bytes, any size, any number of threads."""

import copy

import pytest
import torch
from torch import nn

from quantize import native
from quantize.activations import QParams, Quantized
from quantize.backends import cpu, cpu_packed
from quantize.cpu.activations import geglu_quantize
from quantize.layers import quantize_layer

# Rows, inputs, outputs: less than a tile, whole ones, and what is left of one in each direction; outputs that
# the caches do not hold, of whole lines and others.
SIZES = [(1, 1, 1), (2, 4, 32), (6, 64, 64), (7, 30, 70), (13, 321, 96), (128, 40, 33), (300, 1280, 160)]
SIZES += [(1030, 8, 304), (1030, 8, 330)]
AFFINE = QParams(0.03, 117)
FLOAT32 = 1e-6


@pytest.fixture(autouse=True)
def library():
    if native.library() is None or cpu.lacks():
        pytest.skip("no native library")


def operands(rows, inputs, outputs):
    noise = torch.Generator().manual_seed(rows + inputs + outputs)
    values = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=noise)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=noise)
    scale, bias = torch.rand(outputs, generator=noise) + 0.1, torch.randn(outputs, generator=noise)
    return Quantized(values, AFFINE), weight, scale, bias


def expected(x, weight, scale, bias):
    sums = (x.values.double() - AFFINE.zero) @ weight.double().T
    return sums * AFFINE.scale * scale + (0 if bias is None else bias)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_sums_are_exact(size, with_bias):
    x, weight, scale, bias = operands(*size)
    bias = bias if with_bias else None
    exact = expected(x, weight, scale, bias)
    packed = cpu_packed.pack_linear(weight)
    out = packed.multiply(x, scale, bias, None)
    assert torch.allclose(out.double(), exact, rtol=FLOAT32, atol=FLOAT32 * exact.abs().max().item())
    onto = torch.randn(out.shape)
    total = packed.multiply(x, scale, bias, onto.clone())
    assert torch.allclose(total, out + onto, rtol=FLOAT32, atol=FLOAT32)


def test_an_empty_batch_gives_an_empty_answer():
    x, weight, scale, bias = operands(0, 64, 128)
    packed = cpu_packed.pack_linear(weight)
    assert packed.multiply(x, scale, bias, None).shape == (0, 128)
    assert packed.gated(x, scale, bias, AFFINE).values.shape == (0, 64)


@pytest.mark.parametrize("size", [(1, 4, 64), (7, 30, 128), (50, 320, 640)])
def test_a_gated_layer_gives_the_bytes_of_its_gated_numbers(size):
    x, weight, scale, bias = operands(*size)
    packed, qparams = cpu_packed.pack_linear(weight), QParams(40.0, 90)
    assert packed.gates
    numbers = packed.multiply(x, scale, bias, None)
    assert torch.equal(packed.gated(x, scale, bias, qparams).values, geglu_quantize(numbers, qparams).values)


@pytest.mark.parametrize("name", ["multiply", "gated"])
def test_the_number_of_threads_changes_nothing(name):
    x, weight, scale, bias = operands(300, 320, 640)
    last = {"multiply": None, "gated": AFFINE}[name]
    outs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = getattr(cpu_packed.pack_linear(weight), name)(x, scale, bias, last)
            outs.append(out.values if isinstance(out, Quantized) else out)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic", "int8_weight"])
@pytest.mark.parametrize("width", [64, 10])  # the second shares a panel between values and gates
@pytest.mark.parametrize("qparams", [QParams(0.02, 100), None])
def test_a_layer_gates_as_its_numbers_would_be(scheme, width, qparams):
    layer, x = nn.Linear(24, 2 * width), torch.randn(5, 24)
    quantized = quantize_layer(layer, scheme, [(-4.0, 4.0)] if scheme == "int8_static" else None)
    quantized.bind("cpu")
    got, numbers = quantized.gated(x, qparams), geglu_quantize(quantized(x), qparams)
    assert got.qparams == numbers.qparams
    assert torch.equal(got.values, numbers.values)
    assert quantized.gated(x[:0], qparams or AFFINE).values.shape == (0, width)


def test_without_the_library_onednn_gives_the_same(monkeypatch):
    layer, x = quantize_layer(nn.Linear(64, 96), "int8_dynamic"), torch.randn(9, 64)
    other = copy.deepcopy(layer)
    layer.bind("cpu")
    with_it = layer(x)
    monkeypatch.setattr(native, "function", lambda *_: None)
    other.bind("cpu")
    assert torch.allclose(other(x), with_it, rtol=1e-5, atol=1e-6)
    assert not isinstance(other._compute._packed, cpu_packed.PackedLinear)
