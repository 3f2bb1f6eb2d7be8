"""Plans that fit a budget of bytes or of noise, from what each layer was measured to do.

Every layer begins on the cheap rung of its ladder. The one that takes most noise away for each byte that it
costs goes up first, and so on. The noises of many layers are taken to add up: errors are small and depend
little on each other. The file's own report says what it came to in the end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from quantize.calibration.sensitivity import Effect
from quantize.spec import LayerSpec

FLOAT = "float"
BETTER = {"int4_group": "int8_weight", "fp8_weight": "int8_weight"}  # from any other scheme up: float
HEADER_MARGIN = 24  # bytes by which a layer's entry in a file's header may grow with its scheme


@dataclass(frozen=True)
class Ladder:
    """One layer's schemes, cheap and better, and its bytes under each."""

    cheap: str
    better: str
    cheap_bytes: int
    better_bytes: int

    @property
    def cost(self) -> int:
        """Bytes that going up takes."""
        return self.better_bytes - self.cheap_bytes + HEADER_MARGIN


@dataclass(frozen=True)
class Choice:
    """layers: scheme by name, `FLOAT` for none; noise: expected, by probe; cost: bytes added."""

    layers: Mapping[str, str]
    noise: Mapping[str, float]
    cost: int


def ladders_of(model: nn.Module, layers: Mapping[str, str]) -> dict[str, Ladder]:
    """A ladder for each layer of a plan, which is its cheap rung."""
    return {name: _ladder(model.get_submodule(name), scheme) for name, scheme in layers.items()}


def choose(
    ladders: Mapping[str, Ladder],
    effects: Mapping[str, Effect],
    *,
    most_bytes: int | None = None,
    most_noise: float | None = None,
) -> Choice:
    """The rungs that a budget buys; one of the two, or none, which leaves everything cheap.

    Layers without an effect, which no measurement reached, go up in any case. most_bytes: that all of it may
    cost. most_noise: in each probe's answers. A budget that is too small is spent as far as it goes: the
    choice says what it came to.
    """
    effects = {name: one for name, one in effects.items() if one.noise and name in ladders}
    up = [name for name in ladders if name not in effects]
    cost = sum(ladders[name].cost for name in up)
    noise: dict[str, float] = defaultdict(float)
    for name, effect in effects.items():
        noise[effect.probe] += effect.noise[ladders[name].cheap]
    if most_bytes is not None or most_noise is not None:
        for name in _by_worth(ladders, effects):
            probe = effects[name].probe
            if most_noise is not None and noise[probe] <= most_noise:
                continue
            if most_bytes is not None and cost + ladders[name].cost > most_bytes:
                continue
            up.append(name)
            cost += ladders[name].cost
            noise[probe] -= gain(ladders[name], effects[name])
    chosen = {name: one.better if name in set(up) else one.cheap for name, one in ladders.items()}
    return Choice(chosen, _summed(chosen, effects), cost)


def gain(ladder: Ladder, effect: Effect) -> float:
    """The noise that going up takes away."""
    return effect.noise[ladder.cheap] - effect.noise.get(ladder.better, 0.0)


def _by_worth(ladders: Mapping[str, Ladder], effects: Mapping[str, Effect]) -> Sequence[str]:
    worth = {name: gain(ladders[name], one) / ladders[name].cost for name, one in effects.items()}
    return sorted((name for name in worth if worth[name] > 0), key=lambda name: -worth[name])


def _summed(chosen: Mapping[str, str], effects: Mapping[str, Effect]) -> dict[str, float]:
    """Summed anew: what is left after many subtractions from a large number is rounding."""
    noise: dict[str, float] = {effect.probe: 0.0 for effect in effects.values()}
    for name, effect in effects.items():
        noise[effect.probe] += effect.noise.get(chosen[name], 0.0)
    return noise


def _ladder(layer: nn.Module, cheap: str) -> Ladder:
    better = BETTER.get(cheap, FLOAT)
    sizes = [layer.weight.nbytes if scheme == FLOAT else _bytes(layer, scheme) for scheme in (cheap, better)]
    return Ladder(cheap, better, *sizes)


def _bytes(layer: nn.Module, scheme: str) -> int:
    shapes = LayerSpec.of(layer, scheme).shapes().values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
