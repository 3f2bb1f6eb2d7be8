"""Convolutions in bfloat16 are those of rounded numbers, and keep their float weights."""

import copy

import pytest
import torch
from torch import nn

from quantize.fused.convolutions import Bf16Conv2d, to_bf16

LAYERS = {
    "1x1": lambda: nn.Conv2d(24, 40, 1),
    "3x3": lambda: nn.Conv2d(24, 40, 3, padding=1),
    "strided, without bias": lambda: nn.Conv2d(24, 40, 3, stride=2, bias=False),
    "same size": lambda: nn.Conv2d(24, 40, 3, padding="same"),
    "groups, dilated": lambda: nn.Conv2d(24, 40, 3, padding=2, dilation=2, groups=4),
}
ROUNDING = 2**-8  # relative, of one number to bfloat16
HALVES = torch.cpu._is_avx512_bf16_supported()
needs_halves = pytest.mark.skipif(not HALVES, reason="this CPU has no instructions for bfloat16")


@needs_halves
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_answer_is_that_of_rounded_numbers_rounded(kind, layout):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    assert to_bf16(layer)
    exact = copy.deepcopy(layer).bfloat16().double()
    exact.__class__ = nn.Conv2d
    for batch, size in ((2, 8), (1, 12), (0, 8)):
        x = torch.randn(batch, 24, size, size).contiguous(memory_format=layout)
        expected = exact(x.bfloat16().double())
        with torch.inference_mode():
            got = layer(x)
        assert got.shape == expected.shape
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), expected, rtol=ROUNDING, atol=1e-5)
        if batch and layout is torch.channels_last:
            assert got.is_contiguous(memory_format=layout)


@needs_halves
def test_names_and_weights_stay():
    layer = nn.Conv2d(8, 8, 1)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    to_bf16(layer)
    layer(torch.randn(1, 8, 4, 4))
    after = layer.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 1).double()], ids=str)
def test_what_it_cannot_compute_is_left_alone(layer):
    kind = type(layer)
    assert not to_bf16(layer)
    assert type(layer) is kind


def test_a_cpu_without_instructions_for_it_stays_with_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not to_bf16(layer := nn.Conv2d(8, 8, 1))
    assert not isinstance(layer, Bf16Conv2d)
