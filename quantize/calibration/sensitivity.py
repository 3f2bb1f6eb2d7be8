"""What each layer's quantization does to a network's answers: one layer at a time, everything else float.

Recorded calls are answered again with the layer in its codes. Noise is the squared error of the answers over
their squared size; `quantize.calibration.budget` makes a plan of it.
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
from quantize.layers import quantize_layer
from quantize.model import bind
from quantize.spec import Ranges

VERSION = 1


@dataclass(frozen=True)
class EvalProbe:
    """A network and what it is asked.

    name: for people. covers: how the names of the layers begin that play a part in its answers. answer: asks
    everything again, all answers in one flat tensor.
    """

    name: str
    covers: tuple[str, ...]
    answer: Callable[[], Tensor]


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer: its probe, and by scheme the noise in the answers; none where no probe reaches it."""

    probe: str
    noise: Mapping[str, float]


UNREACHED = Sensitivity("", {})


@dataclass
class Measurements:
    """The layers measured so far, by name; about: what that depends on, such as the sources' hashes."""

    fingerprint: str
    about: Mapping[str, object]
    layers: dict[str, Sensitivity] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything, or leave the file as it was."""
        content = {"version": VERSION, "fingerprint": self.fingerprint, "about": self.about}
        content["effects"] = {name: asdict(one) for name, one in self.layers.items()}
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
    for probe in probes:
        names = [name for name in wanted if name.startswith(probe.covers) and name not in known]
        if not names:
            continue
        with torch.inference_mode(), _called(model, names) as called:
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
    for name in wanted:
        if name not in known and not name.startswith(tuple(at for probe in probes for at in probe.covers)):
            yield name, UNREACHED


def relative_noise(expected: Tensor, got: Tensor) -> float:
    """Squared error over squared size; infinite where `got` has NaN or infinity, or zeros were expected."""
    size, error = expected.double().square().sum(), (got.double() - expected.double()).square().sum()
    noise = (error / size).item() if error else 0.0
    return noise if math.isfinite(noise) else math.inf


def noise_db(noise: float) -> float:
    """Signal over noise in decibels; infinity without noise."""
    return -10 * math.log10(noise) if noise else math.inf


@contextmanager
def _quantized(model: nn.Module, name: str, scheme: str, ranges: Ranges | None) -> Iterator[None]:
    layer = model.get_submodule(name)
    try:
        made = quantize_layer(layer, scheme, ranges)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    bind(made := made.to(layer.weight.device))
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, made)
    try:
        yield
    finally:
        setattr(owner, child, layer)


@contextmanager
def _called(model: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    """The names of those layers that are called."""
    called: set[str] = set()

    def marker(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    handles = [model.get_submodule(name).register_forward_pre_hook(marker(name)) for name in names]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()
