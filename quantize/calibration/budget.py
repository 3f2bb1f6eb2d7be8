"""Plans that fit a budget of bytes or of noise, from what each layer was measured to do.

Every layer begins with the cheap one of its two candidate schemes. The layer where the better one takes most
noise away for each byte that it costs gets it first, and so on. Noises of many layers are taken to add up:
errors are small and depend little on each other. The file's own report says what it came to in the end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from quantize.calibration.sensitivity import Sensitivity
from quantize.spec import LayerSpec

FLOAT = "float"
BETTER = {"int4_group": "int8_weight", "fp8_weight": "int8_weight"}  # from any other scheme up: float
HEADER_MARGIN = 24  # bytes by which a layer's entry in a file's header may grow with its scheme


@dataclass(frozen=True)
class Candidates:
    """One layer's schemes, cheap and better, and its bytes under each."""

    cheap: str
    better: str
    cheap_bytes: int
    better_bytes: int

    @property
    def schemes(self) -> tuple[str, str]:
        """Both, the cheap one first."""
        return self.cheap, self.better

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


def candidates_of(model: nn.Module, layers: Mapping[str, str]) -> dict[str, Candidates]:
    """The candidates of each layer of a plan, whose scheme is the cheap one."""
    return {name: _candidates(model.get_submodule(name), scheme) for name, scheme in layers.items()}


def choose(
    candidates: Mapping[str, Candidates],
    effects: Mapping[str, Sensitivity],
    *,
    most_bytes: int | None = None,
    most_noise: float | None = None,
) -> Choice:
    """The rungs that a budget buys; one of the two, or none, which leaves everything cheap.

    Layers without an effect, which no measurement reached, go up in any case. most_bytes: that all of it may
    cost. most_noise: in each probe's answers. A budget that is too small is spent as far as it goes: the
    choice says what it came to.
    """
    effects = {name: one for name, one in effects.items() if one.noise and name in candidates}
    up = [name for name in candidates if name not in effects]
    cost = sum(candidates[name].cost for name in up)
    noise: dict[str, float] = defaultdict(float)
    for name, effect in effects.items():
        noise[effect.probe] += effect.noise[candidates[name].cheap]
    if most_bytes is not None or most_noise is not None:
        for name in _by_worth(candidates, effects):
            probe = effects[name].probe
            if most_noise is not None and noise[probe] <= most_noise:
                continue
            if most_bytes is not None and cost + candidates[name].cost > most_bytes:
                continue
            up.append(name)
            cost += candidates[name].cost
            noise[probe] -= gain(candidates[name], effects[name])
    chosen = {name: one.better if name in set(up) else one.cheap for name, one in candidates.items()}
    return Choice(chosen, _summed(chosen, effects), cost)


def gain(candidates: Candidates, effect: Sensitivity) -> float:
    """The noise that going up takes away."""
    return effect.noise[candidates.cheap] - effect.noise.get(candidates.better, 0.0)


def _by_worth(candidates: Mapping[str, Candidates], effects: Mapping[str, Sensitivity]) -> Sequence[str]:
    worth = {name: gain(candidates[name], one) / candidates[name].cost for name, one in effects.items()}
    return sorted((name for name in worth if worth[name] > 0), key=lambda name: -worth[name])


def _summed(chosen: Mapping[str, str], effects: Mapping[str, Sensitivity]) -> dict[str, float]:
    """Summed anew: what is left after many subtractions from a large number is rounding."""
    noise: dict[str, float] = {effect.probe: 0.0 for effect in effects.values()}
    for name, effect in effects.items():
        noise[effect.probe] += effect.noise.get(chosen[name], 0.0)
    return noise


def _candidates(layer: nn.Module, cheap: str) -> Candidates:
    better = BETTER.get(cheap, FLOAT)
    sizes = [layer.weight.nbytes if scheme == FLOAT else _bytes(layer, scheme) for scheme in (cheap, better)]
    return Candidates(cheap, better, *sizes)


def _bytes(layer: nn.Module, scheme: str) -> int:
    shapes = LayerSpec.of(layer, scheme).shapes().values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
