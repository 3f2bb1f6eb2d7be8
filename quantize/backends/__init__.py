"""Who computes a quantized layer: a registry of backends, and the choice between them, made once at load.

A backend is made from a layer's `LayerSpec` and called with the layer and its input. All give the reference's
result up to the rounding of floating-point sums.
"""

from __future__ import annotations

import torch

from quantize.backends import cpu, cuda
from quantize.backends.reference import Reference
from quantize.schemes import LayerSpec

__all__ = ["BACKENDS", "Reference", "choose_backend", "make_backend"]


def choose_backend(device: torch.device) -> str:
    """The fastest backend that `device` has; what it lacks is logged once."""
    if device.type == "cuda":
        return "reference" if cuda.lacks(device) else device.type
    return "cpu" if device.type == "cpu" and not cpu.lacks() else "reference"


def make_backend(name: str, spec: LayerSpec) -> Reference:
    """Backend `name` for a layer, the reference where it has nothing better for that layer's scheme.

    Raises ValueError for an unknown name, or where this machine cannot run it.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: use one of {', '.join(BACKENDS)}")
    if lacking := BACKENDS[name][0].lacks():
        raise ValueError(f"backend {name!r} cannot run here: {lacking}; use 'reference'")
    return next(way for way in BACKENDS[name] if way.computes(spec))(spec)


# Name -> its ways, the first that computes a layer does. By keyword: these are names of backends, and only
# `ldm.util` writes down devices.
BACKENDS: dict[str, tuple[type[Reference], ...]] = dict(  # noqa: C408
    reference=(Reference,), cpu=(cpu.Vnni, cpu.WeightOnly, Reference), cuda=(cuda.TensorCores, Reference)
)
