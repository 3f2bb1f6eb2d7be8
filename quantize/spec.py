"""What a quantized layer is, apart from its numbers: enough to lay out its tensors and to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.arithmetic import affine_of
from quantize.schemes import CODECS, Codec, Scheme, Shapes, get_scheme

KINDS = {nn.Linear: "linear", nn.Conv2d: "conv2d"}
Ranges = Sequence[tuple[float, float]]  # of inputs: over all timesteps, then for each group of them


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks; every pair is height, width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class LayerSpec:
    """scheme: its name; shape: of the float weight; geometry: None for a Linear layer; bias: has it one?

    ranges: how many input ranges a static layer holds: one, and one more for each group of timesteps.
    """

    scheme: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    bias: bool
    ranges: int = 1

    @classmethod
    def of(cls, layer: nn.Module, scheme: str, ranges: int = 1) -> LayerSpec:
        """The spec of a Linear or Conv2d under a scheme; ValueError for any other layer or scheme."""
        get_scheme(scheme)
        if reason := why_not(layer):
            raise ValueError(f"{type(layer).__name__} cannot be quantized: {reason}")
        geometry = None
        if isinstance(layer, nn.Conv2d):
            geometry = Geometry(layer.stride, _padding(layer), layer.dilation, layer.groups)
        return cls(scheme, tuple(layer.weight.shape), geometry, layer.bias is not None, ranges)

    @property
    def rule(self) -> Scheme:
        """The scheme itself."""
        return get_scheme(self.scheme)

    @property
    def codec(self) -> Codec:
        """Of the weights."""
        return CODECS[self.rule.codes]

    def shapes(self) -> Shapes:
        """The tensors of such a layer, its float bias aside."""
        shapes = self.codec.shapes(self.shape, self.rule.group)
        if self.rule.inputs == "static":
            shapes |= {"in_scale": ((self.ranges,), torch.float32), "in_zero": ((self.ranges,), torch.int32)}
        return shapes

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer in floating point: [..., in] or [b, c, h, w] -> [..., out] or [b, out, h, w]."""
        if self.geometry is None:
            return F.linear(x, weight, bias)
        geo = self.geometry
        return F.conv2d(x, weight, bias, geo.stride, geo.padding, geo.dilation, geo.groups)

    def per_channel(self, values: Tensor) -> Tensor:
        """[out] as it multiplies or adds to the layer's output."""
        return values if self.geometry is None else values[:, None, None]


def quantize_tensors(
    spec: LayerSpec, weight: Tensor, ranges: Ranges | None = None, clip: str = "mse"
) -> dict[str, Tensor]:
    """Codes and scales of a float weight, under the names and shapes of `spec.shapes()`.

    ranges: of the inputs, for static schemes. Raises ValueError for NaN, infinity, another shape, and missing
    ranges.
    """
    if tuple(weight.shape) != spec.shape:
        raise ValueError(f"the weight has shape {list(weight.shape)}, the layer {list(spec.shape)}")
    codes, scale = spec.codec.encode(weight, spec.rule.group, clip)
    tensors = {"qweight": codes, "scale": scale}
    if spec.rule.inputs == "static":
        if not ranges:
            raise ValueError(f"{spec.scheme} needs input ranges: calibrate first, or use int8_dynamic")
        affines = [affine_of(low, high, "a layer's input") for low, high in ranges]
        tensors["in_scale"] = torch.tensor([one.scale for one in affines], dtype=torch.float32)
        tensors["in_zero"] = torch.tensor([one.zero for one in affines], dtype=torch.int32)
    expected = spec.shapes()
    made = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    assert made == expected, f"{made} are not the promised {expected}"
    return tensors


def why_not(layer: nn.Module) -> str | None:
    """Why a layer cannot be quantized, or None: subclasses may compute otherwise, so exact types only."""
    if type(layer) not in KINDS:
        return "only nn.Linear and nn.Conv2d themselves can"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.padding == "same"):
        return (
            f"padding {layer.padding!r} of mode {layer.padding_mode!r} is not the zeros on both sides we need"
        )
    return None


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    return (0, 0) if layer.padding == "valid" else layer.padding
