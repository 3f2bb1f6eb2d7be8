"""Random weights for the benches, drawn tensor by tensor: two kinds, of which the first is the harder.

gaussian: matrices keep the variance of their input about, so that activations stay in range through the whole
network; norms are near 1, biases small. default: what torch gives a fresh layer, uniform weights and biases
up to 1 / sqrt(inputs), norms of 1 (embeddings are Gaussian). Nothing that multiplies is zero in either, least
of all the zero convolutions of a branch. A uniform row has its largest weight at 1.7 standard deviations, a
Gaussian one of a thousand inputs at 3.2: the same bits round it to steps of half the size.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SPREAD = 0.2  # of norms around 1 and of biases around 0: enough that none of them could be left out


def gaussian(name: str, layer: nn.Module) -> Tensor:
    """The float32 parameter called `name` of `layer`, which may be on the meta device."""
    shape = layer.get_parameter(name.rpartition(".")[2]).shape
    noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=noise)
    if len(shape) > 1:
        return drawn.div_(math.sqrt(math.prod(shape[1:])))
    return drawn.mul_(SPREAD).add_(1.0 if name.endswith("weight") else 0.0)


def default(name: str, layer: nn.Module) -> Tensor:
    """As `gaussian`, but what the layer's own `reset_parameters` draws."""
    layer_name, _, parameter = name.rpartition(".")
    fresh = copy.deepcopy(layer).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):  # its initialisation knows no other generator
        torch.manual_seed(zlib.crc32(layer_name.encode()))
        fresh.reset_parameters()
    return fresh.get_parameter(parameter).detach()


# (name of a parameter in the model, its layer) -> its numbers; the same name and shape give the same.
WEIGHTS: Mapping[str, Callable[[str, nn.Module], Tensor]] = {"gaussian": gaussian, "default": default}
