"""Who computes a quantized layer: a registry of backends, and the choice between them, made once at load.

A backend is made from a layer's `LayerSpec` and called with an input and the layer's tensors by name. All
give the reference's result up to the rounding of floating-point sums.
"""

from __future__ import annotations

import torch

from quantize.backends import cpu, cuda, reference
from quantize.backends.base import Backend
from quantize.spec import LayerSpec

__all__ = ["BACKENDS", "Backend", "choose_backend", "make_backend"]


def choose_backend(device: torch.device) -> str:
    """The fastest backend that `device` has; what it lacks is logged once."""
    if device.type == "cuda":
        return device.type if cuda.is_supported(device) else "reference"
    return "cpu" if device.type == "cpu" and cpu.is_supported() else "reference"


def make_backend(name: str, spec: LayerSpec) -> Backend:
    """Backend `name` for a layer, the reference where it has nothing better for that layer's scheme.

    Raises ValueError for an unknown name, or where this machine cannot run it.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: use one of {', '.join(BACKENDS)}")
    made, checks = BACKENDS[name], {cpu.Vnni: cpu.lacks, cuda.TensorCores: cuda.lacks}
    if made in checks and (lacking := checks[made]()):
        raise ValueError(f"backend {name!r} cannot run here: {lacking}; use 'reference'")
    ways = [made, *([cpu.WeightOnly] if name == "cpu" else []), reference.Reference]
    return next(way for way in ways if way.computes(spec))(spec)


# By keyword: these are names of backends, and only `ldm.util` writes down devices.
BACKENDS: dict[str, type[Backend]] = dict(  # noqa: C408
    reference=reference.Reference, cpu=cpu.Vnni, cuda=cuda.TensorCores
)
