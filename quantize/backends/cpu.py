"""int8 layers by oneDNN, the library behind torch on x86: bytes times signed bytes, summed in 32 bits.

Weights are packed into its own blocked layout at the first call and never leave int8. Inputs must be
unsigned: on some CPUs the operator never returns from signed ones. Without VNNI the multiply-add saturates at
16 bits, which would change results, so such CPUs are left to the reference.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from quantize.arithmetic import quantize_uint8
from quantize.backends.base import input_affine
from quantize.spec import LayerSpec

log = logging.getLogger(__name__)

NO_POST_OP = ("none", [], "")
OPERATORS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv2d_pointwise")


@functools.cache
def lacks() -> str | None:
    """What this CPU or this torch lacks, in words; None when nothing. Logged when first asked."""
    reason = None
    if not all(hasattr(torch.ops.onednn, name) for name in OPERATORS):
        reason = "this torch was built without oneDNN's int8 operators"
    elif not torch.cpu._is_vnni_supported():  # the only question about it that torch answers
        reason = "this CPU has no VNNI instructions"
    if reason:
        log.warning("%s: int8 layers are computed by the slow reference", reason)
    return reason


def is_supported() -> bool:
    """Whether this machine can."""
    return lacks() is None


class OneDnn:
    """int8 weights with dynamic or static inputs."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._packed: Tensor | None = None
        self._zeros: Tensor | None = None

    @property
    def packed(self) -> bool:
        """See `Backend`."""
        return self._packed is not None

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """int8 times int8 only: with float inputs there is nothing to gain from it."""
        return spec.rule.codes == "int8" and spec.rule.inputs != "float"

    def __call__(self, x: Tensor, held: Mapping[str, Tensor | None], bias: Tensor | None) -> Tensor:
        """See `Backend`."""
        if not x.numel():  # oneDNN has no word for it
            weight = torch.empty(self.spec.shape, device="meta")
            return x.new_empty(self.spec.apply(x.float().to("meta"), weight).shape)
        if self._packed is None:
            self._pack(held)
        affine = input_affine(self.spec, x, held)
        codes, bias = quantize_uint8(x, affine), None if bias is None else bias.float()
        weight = (self._packed, held["scale"], self._zeros, bias)
        out_format = (1.0, 0, torch.float32, *NO_POST_OP)
        if self.spec.geometry is None:
            return torch.ops.onednn.qlinear_pointwise(codes, *affine, *weight, *out_format).to(x.dtype)
        geo = self.spec.geometry
        walk = (geo.stride, geo.padding, geo.dilation, geo.groups)
        return torch.ops.onednn.qconv2d_pointwise(codes, *affine, *weight, *walk, *out_format).to(x.dtype)

    def _pack(self, held: Mapping[str, Tensor | None]) -> None:
        weight, scale, geo = held["qweight"], held["scale"], self.spec.geometry
        self._zeros = torch.zeros(scale.shape, dtype=torch.int32)
        if geo is None:
            self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        else:
            # Scale and zero point of the inputs only say that there are some; calls bring their own.
            walk = (geo.stride, geo.padding, geo.dilation, geo.groups)
            self._packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 1, *walk, None)
