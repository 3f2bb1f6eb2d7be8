"""Quantized layers on an NVIDIA GPU's tensor cores; the kernels are in `quantize.triton`.

Nothing in a call waits for the GPU: scales of inputs stay there, so that a whole step can be recorded as a
CUDA graph. NaN in an input is therefore not refused but comes out as NaN.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantize.activations import Quantized
from quantize.backends.reference import Layer, Reference, empty_output
from quantize.schemes import FP8_CAPABILITY, LayerSpec
from quantize.timesteps import group_on_device

if TYPE_CHECKING:
    from quantize.triton.activations import Ranges
    from quantize.triton.products import Activations, Weights

log = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)  # Ampere: below it Triton does not compile products of int8


@functools.cache
def lacks(device: torch.device | None = None) -> str | None:
    """What a GPU (None: the current one) lacks, in words; None when nothing. Logged when first asked."""
    reason = None
    if not torch.cuda.is_available():
        reason = "there is no CUDA GPU"
    elif find_spec("triton") is None:
        reason = "Triton is not installed"
    elif (found := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        reason = f"this GPU's compute capability is {found[0]}.{found[1]} and 8.0 is needed"
    if reason:
        log.warning("%s: quantized layers are computed by the slow reference", reason)
    return reason


class TensorCores(Reference):
    """Linear layers and convolutions of every scheme.

    Of int4 it keeps the weights in an order of its own; others stay the layer's, convolutions channels last.
    """

    lacks = staticmethod(lacks)

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self._sums: Tensor | None = None
        self._sharing: int | None = None

    @property
    def packed(self) -> bool:
        """See `Reference`."""
        return self._sharing is not None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """All but embeddings, of which rows are looked up, and fp8 where the GPU has none."""
        return not spec.table and (spec.rule.weights != "fp8" or has_fp8())

    def __call__(self, layer: Layer, x: Tensor | Quantized) -> Tensor:
        """See `Reference`."""
        from quantize.triton import products

        given = x.values if isinstance(x, Quantized) else x
        dtype = getattr(x, "dtype", torch.float32)  # bytes that were made here know it
        if not given.numel():
            return empty_output(self.spec, given, dtype)
        how = (self._weights(layer), layer.bias, dtype)
        values = self._activations(layer, x)
        if self.spec.geometry is None:
            return products.linear(values, *how)
        return products.conv2d(values, *how, self.spec.geometry)

    def _activations(self, layer: Layer, x: Tensor | Quantized) -> Activations:
        from quantize.triton import activations
        from quantize.triton.products import Activations

        rule = self.spec.rule
        if isinstance(x, Quantized):
            if rule.weights == "int8" and rule.inputs != "float":
                values, qparams = activations.signed(x)
                return Activations(values, *qparams)
            x = x.float()
        if rule.inputs == "float":
            return Activations(x)
        if rule.weights == "fp8":
            return Activations(*activations.quantize_fp8(x))
        values, qparams = activations.quantize(x, ranges_of(layer))
        return Activations(values, *qparams)

    def _weights(self, layer: Layer) -> Weights:
        from quantize.triton.products import Weights, by_taps, pack_halves

        inputs, *taps = self.spec.shape[1:]
        about = {"scale": layer.scale, "inputs": inputs, "taps": tuple(taps) or (1, 1)}
        if self.spec.rule.weights == "int4":
            if not self.packed:
                self._sharing = 2 * layer.qweight.shape[2]  # two weights a byte
                layer.register_buffer("halves", pack_halves(layer.qweight, self.spec.shape))
            return Weights(layer.halves, sharing=self._sharing, **about)
        if taps:  # the same numbers under the same name: the layer can still be saved, and moved
            layer.qweight = layer.qweight.contiguous(memory_format=torch.channels_last)
        values = by_taps(layer.qweight)
        if self.spec.rule.weights == "int8" and self.spec.rule.inputs != "float":
            if self._sums is None or self._sums.device != values.device:
                self._sums = values.sum(dim=(1, 2), dtype=torch.int32)
            about["sums"] = self._sums
        return Weights(values, **about)


def ranges_of(layer: Layer) -> Ranges | None:
    """Of a layer's static inputs, for the current group of timesteps; None where each input has its own."""
    from quantize.triton.activations import Ranges

    if layer.spec.rule.inputs != "static":
        return None
    scale, zero, group = layer.in_scale, layer.in_zero, group_on_device()
    if group is None or layer.spec.ranges == 1:
        return Ranges(scale, zero)
    if isinstance(group, Tensor):
        return Ranges(scale[1:], zero[1:], group)  # the first is that over all groups
    return Ranges(scale[group + 1 :], zero[group + 1 :])


@functools.cache
def has_fp8() -> bool:
    """Whether the current GPU multiplies fp8. Logged when first asked, where it does not."""
    has = torch.cuda.get_device_capability() >= FP8_CAPABILITY
    if not has:
        log.warning("this GPU does not multiply fp8: such layers are computed by the slow reference")
    return has
