"""What a layer's numbers may become, and what a quantized layer is apart from them.

A scheme says what a result is; `quantize.backends` says who computes it. A new one is an entry in `SCHEMES`,
and where its weights have new codes, one in `WEIGHT_FORMATS`; the tests loop over both. A `LayerSpec` is
enough to lay out a layer's tensors and to compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.activations import qparams_of
from quantize.arithmetic import (
    FP8,
    dequantize_channels,
    dequantize_int4,
    fitting_group,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
)

DEFAULT_GROUP = 64  # 16 bits of scale on 64 weights: a quarter of a bit each
FP8_CAPABILITY = (8, 9)  # of CUDA devices that multiply fp8: Ada and Hopper are the first
KINDS = (nn.Linear, nn.Conv2d, nn.Embedding)

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name of a tensor -> its shape and dtype
Ranges = Sequence[tuple[float, float]]  # of inputs: over all timesteps, then for each group of them


@dataclass(frozen=True)
class Scheme:
    """Codes of a layer's weights and inputs."""

    weights: str  # one of `WEIGHT_FORMATS`
    inputs: str  # "float" as they come, "dynamic" by the range of each call, "static" by calibration
    expected_sqnr_db: float  # that a layer's output keeps at least, of Gaussian weights and inputs
    group: int | None = None  # inputs that share a scale, of int4


@dataclass(frozen=True)
class WeightFormat:
    """Weights [out, ...] to codes and back."""

    quantize: Callable[[Tensor, int | None, str], tuple[Tensor, Tensor]]  # of weight, group, clip
    dequantize: Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # of codes, scales, the weight's shape
    shapes: Callable[[Sequence[int], int | None], Shapes]  # of its shape and group: what quantize gives


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves; every pair is height, width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class LayerSpec:
    """What a quantized layer is, its numbers aside."""

    scheme: str  # its name
    shape: tuple[int, ...]  # of the float weight, [out, in / groups, ...]
    geometry: Geometry | None  # of a convolution alone
    bias: bool  # whether it has one
    ranges: int = 1  # of a static layer's inputs: one over all, and one for each group of timesteps
    table: bool = False  # whether it is an embedding, of which rows are looked up

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


def get_scheme(name: str) -> Scheme:
    """The scheme called `name`; ValueError that lists them for another."""
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}: use one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def check_device(name: str, device: torch.device) -> None:
    """ValueError in one sentence where `device` has no arithmetic for the scheme called `name`."""
    if get_scheme(name).weights != "fp8":
        return
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < FP8_CAPABILITY:
        given = f"this one has {found[0]}.{found[1]}" if found else f"not {device.type}"
        raise ValueError(f"{name} needs a CUDA GPU of compute capability 8.9 or more, {given}")


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


def _by_channel(values: torch.dtype) -> Callable[[Sequence[int], int | None], Shapes]:
    return lambda shape, _: {"qweight": (tuple(shape), values), "scale": ((shape[0],), torch.float32)}


def _by_group(shape: Sequence[int], group: int | None) -> Shapes:
    inputs = math.prod(shape[1:])
    group = fitting_group(inputs, group)
    groups = math.ceil(inputs / group)
    return {
        "qweight": ((shape[0], groups, group // 2), torch.uint8),
        "scale": ((shape[0], groups), torch.bfloat16),
    }


def _dequantize_channels(values: Tensor, scale: Tensor, _: Sequence[int]) -> Tensor:
    return dequantize_channels(values, scale)


def _quantize_int4(weight: Tensor, group: int | None, clip: str) -> tuple[Tensor, Tensor]:
    return quantize_int4(weight, fitting_group(math.prod(weight.shape[1:]), group), clip)


WEIGHT_FORMATS = {
    "int8": WeightFormat(
        lambda weight, _, clip: quantize_int8(weight, clip), _dequantize_channels, _by_channel(torch.int8)
    ),
    "int4": WeightFormat(_quantize_int4, dequantize_int4, _by_group),
    "fp8": WeightFormat(lambda weight, *_: quantize_fp8(weight), _dequantize_channels, _by_channel(FP8)),
}

# What is left of a scheme where inputs are to stay float.
WEIGHTS_ONLY = {"int8_dynamic": "int8_weight", "int8_static": "int8_weight", "fp8_dynamic": "fp8_weight"}
WITHOUT_CALIBRATION = {"int8_static": "int8_dynamic"}  # the scheme without calibration
# Noise of weights and inputs adds up. Gaussian weights keep 40 dB at 8 bits and 20 at 4, inputs 38 at 8 bits
# and 31 at e4m3; less a margin for short rows and rare peaks.
SCHEMES = {
    "int8_weight": Scheme("int8", "float", 39.0),
    "int8_dynamic": Scheme("int8", "dynamic", 35.0),
    "int8_static": Scheme("int8", "static", 34.0),
    "int4_group": Scheme("int4", "float", 19.0, group=DEFAULT_GROUP),
    "fp8_weight": Scheme("fp8", "float", 29.0),
    "fp8_dynamic": Scheme("fp8", "dynamic", 27.0),
}
