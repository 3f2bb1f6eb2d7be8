"""Who computes a quantized layer: a registry of backends, and the choice between them, made once at load.

A backend is made from a layer's `LayerSpec` and called with an input and the layer's tensors by name. All
give the reference's result up to the rounding of floating-point sums.
"""

from __future__ import annotations

import torch

from quantize.backends import cpu, reference
from quantize.backends.base import Backend
from quantize.spec import LayerSpec

__all__ = ["BACKENDS", "Backend", "choose_backend", "make_backend"]


def choose_backend(device: torch.device) -> str:
    """The fastest backend that `device` has; what the CPU lacks is logged once."""
    return "cpu" if device.type == "cpu" and cpu.is_supported() else "reference"


def make_backend(name: str, spec: LayerSpec) -> Backend:
    """Backend `name` for a layer, the reference where it has nothing better for that layer's scheme.

    Raises ValueError for an unknown name, or a CPU without the instructions.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: use one of {', '.join(BACKENDS)}")
    if name == "cpu" and not cpu.is_supported():
        raise ValueError(f"backend 'cpu' cannot run here: {cpu.lacks()}; use 'reference'")
    made = BACKENDS[name]
    return made(spec) if made.computes(spec) else reference.Reference(spec)


BACKENDS: dict[str, type[Backend]] = {"reference": reference.Reference, "cpu": cpu.OneDnn}
