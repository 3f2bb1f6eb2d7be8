"""Layers of every geometry that quantization handles, with inputs that fit them."""

from contextlib import contextmanager

import torch
from torch import nn

from quantize.activations import range_of
from quantize.timesteps import _entered

# name -> the layer and the shape of an input
LAYERS = {
    "linear": (lambda: nn.Linear(96, 40), (5, 96)),
    "linear of three axes, no bias": (lambda: nn.Linear(64, 48, bias=False), (2, 7, 64)),
    "linear of one axis": (lambda: nn.Linear(64, 48), (64,)),
    "linear of an odd width": (lambda: nn.Linear(37, 11), (4, 37)),
    "conv 3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 10)),
    "conv 1x1, no bias": (lambda: nn.Conv2d(32, 24, 1, bias=False), (2, 32, 5, 5)),
    "conv of stride 2": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (1, 16, 9, 10)),
    "conv of two groups": (lambda: nn.Conv2d(16, 24, 3, padding=1, groups=2), (2, 16, 8, 8)),
    "depthwise conv": (lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16), (2, 16, 8, 8)),
    "conv dilated and lopsided": (
        lambda: nn.Conv2d(8, 16, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)),
        (2, 8, 11, 9),
    ),
    "conv named valid": (lambda: nn.Conv2d(8, 16, 3, padding="valid"), (1, 8, 7, 7)),
}


def layer_and_input(name, seed=0):
    """The layer with Gaussian weights, small biases, and an input that is not centred."""
    noise = torch.Generator().manual_seed(seed)
    make, shape = LAYERS[name]
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(drawn / layer.weight[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * drawn)
    return layer, torch.randn(shape, generator=noise) + 0.3


def ranges_for(x, scheme):
    """What calibration on x alone would find, where the scheme asks for it."""
    return [range_of(x)] if scheme.inputs == "static" else None


@contextmanager
def timestep_group(index):
    """What runs inside belongs to group `index`, None for none."""
    token = _entered.set((*_entered.get(), index))
    try:
        yield
    finally:
        _entered.reset(token)
