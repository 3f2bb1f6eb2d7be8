"""Outliers moved from a layer's inputs into its weights, before either is quantized.

Xiao et al. 2023, "SmoothQuant": input channel j is divided by s_j and column j of the weight multiplied by
it. The product is the same, but one loud channel no longer sets everyone's step. The division costs nothing
where what makes the input can take it: the gain and bias of a norm, or the rows of a layer. An activation
function between the two forbids that: GroupNorm followed by SiLU has no such pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantize.arithmetic import TINY, check_finite

STRENGTH = 0.5  # a: of a channel's loudness half moves, as the paper found for most networks
SOURCES = (nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class SmoothingPair:
    """A place where channels can be rescaled: `layers` read the outputs of `source`, and nobody else does.

    Output channel j of `source`, linear in its weights and bias, is input channel j of each of the layers.
    outputs: only the first so many outputs of `source` are meant; None for all.
    """

    source: str
    layers: tuple[str, ...]
    outputs: int | None = None


class AbsMaxObserver:
    """The largest size that each input channel of a layer was seen to have, by the layer's name."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.by_name: dict[str, Tensor] = {}

    def see(self, name: str, x: Tensor) -> None:
        """Take an input of layer `name` into account: [b, in, h, w] for a convolution, else [..., in]."""
        convolution = isinstance(self._model.get_submodule(name), nn.Conv2d)
        channels = x.detach().float().movedim(1 if convolution else -1, -1)
        check_finite(channels, f"an input of {name}")
        peaks = channels.abs().flatten(0, -2).amax(dim=0)
        known = self.by_name.get(name)
        self.by_name[name] = peaks if known is None else torch.maximum(known, peaks)


def smooth_(model: nn.Module, pairs: Sequence[SmoothingPair], peaks: Mapping[str, Tensor]) -> int:
    """Rescale the channels of each pair in a float model, which computes the same afterwards.

    peaks: of the inputs of each pair's first layer; pairs without them stay as they are. Returns how many
    pairs were balanced. Raises ValueError for pairs whose widths do not fit.
    """
    seen_pairs = [pair for pair in pairs if pair.layers[0] in peaks]
    for pair in seen_pairs:
        layers = [model.get_submodule(name) for name in pair.layers]
        source, seen = model.get_submodule(pair.source), peaks[pair.layers[0]]
        _check(pair, source, layers, len(seen))
        scales = channel_scales(seen, [layer.weight for layer in layers])
        with torch.no_grad():
            _divide(source, scales, pair.outputs)
            for layer in layers:
                factors = scales if layer.weight.ndim == 2 else scales[:, None, None]
                layer.weight = _like(layer.weight, layer.weight.float() * factors)
    return len(seen_pairs)


def channel_scales(peaks: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """s [in] of "SmoothQuant", eq. 4: peak of the inputs ** a / peak of the weights ** (1 - a).

    Channels that are never used, by the inputs or by the weights [out, in, ...], keep a scale of 1.
    """
    columns = torch.stack(
        [weight.detach().float().abs().transpose(0, 1).flatten(1).amax(1) for weight in weights]
    )
    largest = columns.amax(dim=0)
    scales = peaks.clamp_min(TINY) ** STRENGTH / largest.clamp_min(TINY) ** (1 - STRENGTH)
    return torch.where((peaks > TINY) & (largest > TINY), scales, torch.ones_like(scales))


def _divide(source: nn.Module, scales: Tensor, outputs: int | None) -> None:
    for name in ("weight", "bias"):
        values = getattr(source, name)
        if values is None:
            continue
        divisors = torch.ones(len(values), device=values.device)
        divisors[:outputs] = scales
        setattr(source, name, _like(values, values.float() / divisors.view(-1, *[1] * (values.ndim - 1))))


def _like(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


def _check(pair: SmoothingPair, source: nn.Module, layers: Sequence[nn.Module], channels: int) -> None:
    if not isinstance(source, SOURCES) or source.weight is None:
        raise ValueError(
            f"{pair.source} is a {type(source).__name__} without a gain: channels cannot be rescaled"
        )
    widths = {layer.weight.shape[1] for layer in layers} | {channels}
    given = pair.outputs or len(source.weight)
    if widths != {given}:
        raise ValueError(
            f"{pair.source} gives {given} channels, {', '.join(pair.layers)} take {sorted(widths)}"
        )
