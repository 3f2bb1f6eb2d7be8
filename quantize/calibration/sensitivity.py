"""Which layers bear to be quantized, and the plan that a budget of bytes or of noise buys.

Recorded calls are answered again with one layer in its codes and everything else float. Noise is the squared
error of the answers over their squared size; noises of many layers are taken to add up: errors are small and
depend little on each other.

For a plan every layer begins with the cheap one of its two candidate schemes. The layer where the better one
takes most noise away for each byte that it costs gets it first, and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common.atomic import atomic_write
from quantize.calibration.ranges import watch_inputs
from quantize.model import bind, put_layer, put_quantized
from quantize.schemes import LayerSpec, Ranges

VERSION = 1
FLOAT = "float"
BETTER = {"int4_group": "int8_weight", "fp8_weight": "int8_weight"}  # from any other scheme up: float
HEADER_MARGIN = 24  # bytes by which a layer's entry in a file's header may grow with its scheme


@dataclass(frozen=True)
class EvalProbe:
    """A network and what it is asked."""

    name: str  # for people
    covers: tuple[str, ...]  # how the names of the layers begin that play a part in its answers
    answer: Callable[[], Tensor]  # asks everything again, all answers in one flat tensor


@dataclass(frozen=True)
class Sensitivity:
    """How much one layer matters."""

    probe: str  # the name of that which reaches it
    noise: Mapping[str, float]  # in the answers, by scheme; empty where no probe reaches it


UNREACHED = Sensitivity("", {})


@dataclass
class Measurements:
    """What was measured so far."""

    fingerprint: str  # of the model
    about: Mapping[str, object]  # what the numbers depend on, such as the sources' hashes
    layers: dict[str, Sensitivity] = field(default_factory=dict)  # by name

    def save(self, path: Path) -> None:
        """Write everything, or leave the file as it was."""
        content = {"version": VERSION, **asdict(self)}
        content["effects"] = content.pop("layers")  # under the name that the first such files gave it
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def resume(self, path: Path) -> None:
        """Take over what `path` holds; nothing where there is no such file.

        Raises ValueError in one sentence for a file that is no measurement, or one of something else.
        """
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, known = found["version"], (found["fingerprint"], found["about"])
            effects = found["effects"].items()
            layers = {name: Sensitivity(one["probe"], dict(one["noise"])) for name, one in effects}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is no measurement of --sensitivity: name another file") from None
        if version != VERSION or known != (self.fingerprint, json.loads(json.dumps(self.about))):
            raise ValueError(
                f"{path} was measured on another model, other weights or other settings: name another file, "
                "or remove it to measure again"
            )
        self.layers |= layers


@dataclass(frozen=True)
class Candidates:
    """One layer's two schemes."""

    cheap: str
    better: str
    cost: int  # bytes that going up takes, at most


@dataclass(frozen=True)
class Choice:
    """Which of its two schemes each layer gets, and what is known about that."""

    layers: Mapping[str, str]  # scheme by name, `FLOAT` for none
    noise: Mapping[str, float]  # expected, by probe
    cost: int  # bytes added


def measure(
    model: nn.Module,
    wanted: Mapping[str, Sequence[str]],
    probes: Sequence[EvalProbe],
    ranges: Mapping[str, Ranges],
    known: Mapping[str, Sensitivity],
) -> Iterator[tuple[str, Sensitivity]]:
    """The sensitivity of each layer of `wanted` (schemes by name) that is not `known`, one after another.

    `model` is float, and is so again after each. ranges: of the static layers' inputs. Raises ValueError for
    weights that hold NaN.
    """
    missing = [name for name in wanted if name not in known]
    for probe in probes:
        names = [name for name in missing if name.startswith(probe.covers)]
        if not names:
            continue
        called: set[str] = set()
        with torch.inference_mode(), watch_inputs(model, names, lambda name, _, to=called: to.add(name)):
            expected = probe.answer().double()
        for name in names:
            if name not in called:
                yield name, UNREACHED
                continue
            noise = {}
            for scheme in wanted[name]:
                with _quantized(model, name, scheme, ranges.get(name)), torch.inference_mode():
                    noise[scheme] = relative_noise(expected, probe.answer())
            yield name, Sensitivity(probe.name, noise)
    covered = tuple(beginning for probe in probes for beginning in probe.covers)
    yield from ((name, UNREACHED) for name in missing if not name.startswith(covered))


def relative_noise(expected: Tensor, got: Tensor) -> float:
    """Squared error over squared size; infinite where `got` has NaN or infinity, or zeros were expected."""
    size, error = expected.double().square().sum(), (got.double() - expected.double()).square().sum()
    noise = (error / size).item() if error else 0.0
    return noise if math.isfinite(noise) else math.inf


def noise_db(noise: float) -> float:
    """Signal over noise in decibels; infinity without noise."""
    return -10 * math.log10(noise) if noise else math.inf


def candidates_of(model: nn.Module, layers: Mapping[str, str]) -> dict[str, Candidates]:
    """The candidates of each layer of a plan, whose scheme is the cheap one."""
    found = {}
    for name, cheap in layers.items():
        layer, better = model.get_submodule(name), BETTER.get(cheap, FLOAT)
        found[name] = Candidates(cheap, better, _bytes(layer, better) - _bytes(layer, cheap) + HEADER_MARGIN)
    return found


def choose(
    candidates: Mapping[str, Candidates],
    effects: Mapping[str, Sensitivity],
    *,
    most_bytes: int | None = None,
    most_noise: float | None = None,
) -> Choice:
    """The better schemes that a budget buys; one of the two, or none, which leaves everything cheap.

    Layers without an effect, which no measurement reached, go up in any case. most_bytes: that all of it may
    cost. most_noise: in each probe's answers. A budget that is too small is spent as far as it goes: the
    choice says what it came to.
    """
    effects = {name: one for name, one in effects.items() if one.noise and name in candidates}
    chosen = {name: one.cheap if name in effects else one.better for name, one in candidates.items()}
    cost = sum(one.cost for name, one in candidates.items() if name not in effects)
    noise = _summed(chosen, effects)
    for name in _by_worth(candidates, effects) if (most_bytes, most_noise) != (None, None) else ():
        one, probe = candidates[name], effects[name].probe
        enough = most_noise is not None and noise[probe] <= most_noise
        too_dear = most_bytes is not None and cost + one.cost > most_bytes
        if enough or too_dear:
            continue
        chosen[name] = one.better
        cost += one.cost
        noise[probe] -= gain(one, effects[name])
    # Summed anew: what is left after many subtractions from a large number is rounding.
    return Choice(chosen, _summed(chosen, effects), cost)


def gain(candidates: Candidates, effect: Sensitivity) -> float:
    """The noise that going up takes away."""
    return effect.noise[candidates.cheap] - effect.noise.get(candidates.better, 0.0)


def _by_worth(candidates: Mapping[str, Candidates], effects: Mapping[str, Sensitivity]) -> list[str]:
    worth = {name: gain(candidates[name], one) / candidates[name].cost for name, one in effects.items()}
    return sorted((name for name in worth if worth[name] > 0), key=lambda name: -worth[name])


def _summed(chosen: Mapping[str, str], effects: Mapping[str, Sensitivity]) -> dict[str, float]:
    noise = {effect.probe: 0.0 for effect in effects.values()}
    for name, effect in effects.items():
        noise[effect.probe] += effect.noise.get(chosen[name], 0.0)
    return noise


def _bytes(layer: nn.Module, scheme: str) -> int:
    if scheme == FLOAT:
        return layer.weight.nbytes
    shapes = LayerSpec.of(layer, scheme).shapes().values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


@contextmanager
def _quantized(model: nn.Module, name: str, scheme: str, ranges: Ranges | None) -> Iterator[None]:
    layer = model.get_submodule(name)
    put_quantized(model, name, scheme, ranges)
    bind(model.get_submodule(name))
    try:
        yield
    finally:
        put_layer(model, name, layer)
