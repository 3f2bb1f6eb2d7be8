"""Layers with float inputs on the CPU: the reference, with its weights decoded in one walk over memory.

The weights are float32 for the length of a call, as in the reference, and equal to its to the bit; what is
gone are the copies between codes and floats.
"""

from __future__ import annotations

from torch import Tensor

from quantize.backends.base import Held
from quantize.backends.reference import Reference
from quantize.cpu.dequantize import DECODERS
from quantize.spec import LayerSpec


class Decoded(Reference):
    """int8 and int4 weights with float inputs."""

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """What there is a decoder for; of a table's rows only a few are looked up."""
        return spec.rule.inputs == "float" and spec.rule.codes in DECODERS and not spec.table

    def weight(self, held: Held) -> Tensor:
        """See `Reference`."""
        return DECODERS[self.spec.rule.codes](held["qweight"], held["scale"], self.spec.shape)
