"""Whole models: float layers out, quantized ones in, by a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from quantize.backends import choose_backend
from quantize.layers import QuantLayer, empty_layer, quantize_layer
from quantize.schemes import LayerSpec, Ranges, check_device
from quantize.selection import Plan


def quantize_(
    model: nn.Module,
    plan: Plan,
    ranges: Mapping[str, Ranges] | None = None,
    *,
    backend: str | None = None,
    clip: str = "mse",
) -> None:
    """Replace the layers of `plan` in `model`, one at a time, so that little more than one is held twice.

    ranges: of the inputs of static layers, from calibration. backend: None for the device's best. Raises
    ValueError in one sentence where the plan, the ranges, the weights or the device do not fit.
    """
    plan.check(model)  # all of it first: half a model would be left otherwise
    for name, scheme in plan.layers.items():
        put_quantized(model, name, scheme, (ranges or {}).get(name), clip)
    bind(model, backend)


def put_quantized(model: nn.Module, name: str, scheme: str, ranges: Ranges | None, clip: str = "mse") -> None:
    """Replace one layer. Raises ValueError, which names the layer, where it cannot be quantized."""
    layer = model.get_submodule(name)
    try:
        quantized = quantize_layer(layer, scheme, ranges, clip)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    put_layer(model, name, quantized.to(layer.weight.device))


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Have `layer` in the place that the dotted `name` says."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def with_empty_layers(model: nn.Module, plan: Plan, range_counts: Mapping[str, int]) -> None:
    """Replace the layers of `plan` by quantized ones without memory; range_counts: of the static ones."""
    for name, scheme in plan.layers.items():
        layer = model.get_submodule(name)
        spec = LayerSpec.of(layer, scheme, range_counts.get(name, 1))
        with torch.device("meta"):  # the numbers come from the file, mapped
            put_layer(model, name, empty_layer(spec).train(layer.training))


def bind(model: nn.Module, backend: str | None = None) -> None:
    """Let every quantized layer compute through `backend`, None for the best of its own device.

    The best of a device has to be there: fp8 without a GPU for it is refused, unless the reference is asked
    for by name. Raises ValueError for that and for an unknown backend.
    """
    for _, layer in quantized_layers(model):
        if backend is None:
            check_device(layer.spec.scheme, layer.scale.device)  # else fp8 would be computed, and crawl
        layer.bind(backend or choose_backend(layer.scale.device))


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """The quantized layers of a model, by name."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantLayer))


def check_schemes(plan: Plan, device: torch.device) -> None:
    """ValueError in one sentence where `device` cannot compute a scheme of `plan`."""
    for scheme in sorted(set(plan.layers.values())):
        check_device(scheme, device)
