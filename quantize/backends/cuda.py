"""Quantized layers on an NVIDIA card's tensor cores; the kernels are in `quantize.triton`.

Nothing in a call waits for the card: scales of inputs stay there, so that a whole step can be recorded as a
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
from quantize.backends.base import Held
from quantize.schemes import FP8_CAPABILITY
from quantize.spec import LayerSpec
from quantize.timesteps import group_on_device

if TYPE_CHECKING:
    from quantize.triton.activations import Ranges
    from quantize.triton.products import Activations, Weights

log = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)  # Ampere: below it Triton does not compile products of int8


@functools.cache
def lacks(device: torch.device | None = None) -> str | None:
    """What a card (None: the current one) lacks, in words; None when nothing. Logged when first asked."""
    reason = None
    if not torch.cuda.is_available():
        reason = "there is no CUDA card"
    elif find_spec("triton") is None:
        reason = "Triton is not installed"
    elif (found := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        reason = f"this card's compute capability is {found[0]}.{found[1]} and 8.0 is needed"
    if reason:
        log.warning("%s: quantized layers are computed by the slow reference", reason)
    return reason


def is_supported(device: torch.device | None = None) -> bool:
    """Whether that card can."""
    return lacks(device) is None


class TensorCores:
    """Linear layers and convolutions of every scheme.

    Of int4 it keeps the weights in an order of its own; others stay the layer's, convolutions channels last.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._sums: Tensor | None = None
        self._sharing: int | None = None

    @property
    def packed(self) -> bool:
        """See `Backend`."""
        return self._sharing is not None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """All but embeddings, of which rows are looked up, and fp8 where the card has none."""
        if spec.rule.codes == "fp8" and not has_fp8():
            return False
        return not spec.table

    def __call__(self, x: Tensor | Quantized, held: Held, bias: Tensor | None) -> Tensor:
        """See `Backend`."""
        from quantize.triton import products

        given = x.codes if isinstance(x, Quantized) else x
        dtype = getattr(x, "dtype", torch.float32)  # bytes that were made here know it
        if not given.numel():
            weight = torch.empty(self.spec.shape, device="meta")
            return given.new_empty(self.spec.apply(given.float().to("meta"), weight).shape, dtype=dtype)
        how = (self._weights(held), bias, dtype)
        values = self._activations(x, held)
        if self.spec.geometry is None:
            return products.linear(values, *how)
        return products.conv2d(values, *how, self.spec.geometry)

    def _activations(self, x: Tensor | Quantized, held: Held) -> Activations:
        from quantize.triton import activations
        from quantize.triton.products import Activations

        rule = self.spec.rule
        if isinstance(x, Quantized):
            if rule.codes == "int8" and rule.inputs != "float":
                codes, affine = activations.signed(x)
                return Activations(codes, *affine)
            x = x.float()
        if rule.inputs == "float":
            return Activations(x)
        if rule.codes == "fp8":
            return Activations(*activations.quantize_fp8(x))
        codes, affine = activations.quantize(x, ranges_of(self.spec, held))
        return Activations(codes, *affine)

    def _weights(self, held: Held) -> Weights:
        from quantize.triton.products import Weights, by_taps, pack_halves

        inputs, *taps = self.spec.shape[1:]
        about = {"scale": held["scale"], "inputs": inputs, "taps": tuple(taps) or (1, 1)}
        if self.spec.rule.codes == "int4":
            if not self.packed:
                self._sharing = 2 * held["qweight"].shape[2]
                held["halves"] = pack_halves(held["qweight"], self.spec.shape)
            return Weights(held["halves"], sharing=self._sharing, **about)
        if taps:  # the same numbers under the same name: the layer can still be saved, and moved
            held["qweight"] = held["qweight"].contiguous(memory_format=torch.channels_last)
        codes = by_taps(held["qweight"])
        if self.spec.rule.codes == "int8" and self.spec.rule.inputs != "float":
            if self._sums is None or self._sums.device != codes.device:
                self._sums = codes.sum(dim=(1, 2), dtype=torch.int32)
            about["sums"] = self._sums
        return Weights(codes, **about)


def ranges_of(spec: LayerSpec, held: Held) -> Ranges | None:
    """Of a layer's static inputs, for the current group of timesteps; None where each input has its own."""
    from quantize.triton.activations import Ranges

    if spec.rule.inputs != "static":
        return None
    scale, zero, group = held["in_scale"], held["in_zero"], group_on_device()
    if group is None or spec.ranges == 1:
        return Ranges(scale, zero)
    if isinstance(group, Tensor):
        return Ranges(scale[1:], zero[1:], group)
    return Ranges(scale[group + 1 :], zero[group + 1 :])


@functools.cache
def has_fp8() -> bool:
    """Whether the current card multiplies fp8. Logged when first asked, where it does not."""
    has = torch.cuda.get_device_capability() >= FP8_CAPABILITY
    if not has:
        log.warning("this card does not multiply fp8: such layers are computed by the slow reference")
    return has
