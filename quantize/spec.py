"""What a quantized layer is, apart from its numbers: enough to lay out its tensors and to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.activations import qparams_of
from quantize.schemes import WEIGHT_FORMATS, WEIGHTS_ONLY, Scheme, Shapes, WeightFormat, get_scheme

KINDS = (nn.Linear, nn.Conv2d, nn.Embedding)
Ranges = Sequence[tuple[float, float]]  # of inputs: over all timesteps, then for each group of them


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves; every pair is height, width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class LayerSpec:
    """scheme: its name; shape: of the float weight; geometry: of a convolution, else None; bias: has it one?

    table: whether the weight is an embedding's, of which rows are looked up.
    ranges: how many input ranges a static layer holds: one, and one more for each group of timesteps.
    """

    scheme: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    bias: bool
    ranges: int = 1
    table: bool = False

    @classmethod
    def of(cls, layer: nn.Module, scheme: str, ranges: int = 1) -> LayerSpec:
        """The spec of a Linear, Conv2d or Embedding under a scheme; ValueError where it cannot have it."""
        rule, table = get_scheme(scheme), isinstance(layer, nn.Embedding)
        if reason := why_not(layer):
            raise ValueError(f"{type(layer).__name__} cannot be quantized: {reason}")
        if table and rule.inputs != "float":
            raise ValueError(
                f"an Embedding has no inputs for {scheme} to quantize: use {WEIGHTS_ONLY[scheme]}"
            )
        geometry = None
        if isinstance(layer, nn.Conv2d):
            geometry = Geometry(layer.stride, _padding(layer), layer.dilation, layer.groups)
        bias = getattr(layer, "bias", None) is not None
        return cls(scheme, tuple(layer.weight.shape), geometry, bias, ranges, table)

    @property
    def rule(self) -> Scheme:
        """The scheme itself."""
        return get_scheme(self.scheme)

    @property
    def format(self) -> WeightFormat:
        """Of the weights."""
        return WEIGHT_FORMATS[self.rule.weights]

    def shapes(self) -> Shapes:
        """The tensors of such a layer, its float bias aside."""
        shapes = self.format.shapes(self.shape, self.rule.group)
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
    values, scale = spec.format.quantize(weight, spec.rule.group, clip)
    tensors = {"qweight": values, "scale": scale}
    if spec.rule.inputs == "static":
        if not ranges:
            raise ValueError(f"{spec.scheme} needs input ranges: calibrate first, or use int8_dynamic")
        qparams = [qparams_of(low, high, "a layer's input") for low, high in ranges]
        tensors["in_scale"] = torch.tensor([one.scale for one in qparams], dtype=torch.float32)
        tensors["in_zero"] = torch.tensor([one.zero for one in qparams], dtype=torch.int32)
    expected = spec.shapes()
    made = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    assert made == expected, f"{made} are not the promised {expected}"
    return tensors


def why_not(layer: nn.Module) -> str | None:
    """Why a layer cannot be quantized, or None: subclasses may compute otherwise, so exact types only."""
    if type(layer) not in KINDS:
        return "only nn.Linear, nn.Conv2d and nn.Embedding themselves can"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "its rows are normalised as they are looked up"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.padding == "same"):
        return (
            f"padding {layer.padding!r} of mode {layer.padding_mode!r} is not the zeros on both sides we need"
        )
    return None


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    return (0, 0) if layer.padding == "valid" else layer.padding
