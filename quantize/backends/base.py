"""What a backend is, and what all of them share: bringing a layer's inputs to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quantize.arithmetic import Affine, affine_of, range_of
from quantize.spec import LayerSpec
from quantize.timesteps import current_group


class Backend(Protocol):
    """Computes one layer.

    packed: whether it has the weights in a form of its own, so that the layer's may go.
    """

    packed: bool

    def __init__(self, spec: LayerSpec) -> None: ...

    def __call__(self, x: Tensor, held: Mapping[str, Tensor | None], bias: Tensor | None) -> Tensor:
        """The layer's output in the dtype of x; held: the layer's tensors by name."""
        ...

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """Whether it has an own way for the scheme of `spec`."""
        ...


def input_affine(spec: LayerSpec, x: Tensor, held: Mapping[str, Tensor | None]) -> Affine:
    """How the bytes of a layer's input x are to be read.

    Dynamic schemes look at x and raise ValueError where it holds NaN or infinity. Static ones do not look:
    the range is that of the current group of timesteps, or the one over all where there is no group.
    """
    if spec.rule.inputs == "dynamic":
        return affine_of(*range_of(x), "a layer's input")
    group = current_group()
    index = 0 if group is None or spec.ranges == 1 else group + 1
    return Affine(held["in_scale"][index].item(), int(held["in_zero"][index]))
