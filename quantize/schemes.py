"""What a layer's numbers may become: the codes of its weights, and of its inputs.

A scheme says what a result is; `quantize.backends` says who computes it. A new one is an entry in `SCHEMES`,
and where its weights have new codes, one in `WEIGHT_FORMATS`; the tests loop over both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.arithmetic import (
    FP8,
    check_group,
    dequantize_channels,
    dequantize_int4,
    fitting_group,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
)

DEFAULT_GROUP = 64  # 16 bits of scale on 64 weights: a quarter of a bit each
INPUTS = ("float", "dynamic", "static")
FP8_CAPABILITY = (8, 9)  # of CUDA devices that multiply fp8: Ada and Hopper are the first

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name of a tensor -> its shape and dtype


@dataclass(frozen=True)
class Scheme:
    """Codes of a layer's weights and inputs.

    weights: one of `WEIGHT_FORMATS`. inputs: "float" as they come, "dynamic" quantized by the range of each
    call, "static" by ranges from calibration. expected_sqnr_db: what a layer's output keeps at least, for
    Gaussian weights and inputs. group: inputs that share a scale, for int4.
    """

    weights: str
    inputs: str
    expected_sqnr_db: float
    group: int | None = None

    def __post_init__(self) -> None:
        if self.weights not in WEIGHT_FORMATS or self.inputs not in INPUTS:
            raise ValueError(
                f"scheme of {self.weights} weights and {self.inputs} inputs: weights are "
                f"{', '.join(WEIGHT_FORMATS)}, inputs {', '.join(INPUTS)}"
            )
        if self.weights == "int4":
            check_group(self.group or 0)


@dataclass(frozen=True)
class WeightFormat:
    """Weights to codes and back.

    quantize: (weight [out, ...], group, clip) -> codes and scales. dequantize: (values, scales, shape of the
    weight) -> float32. shapes: (shape of the weight, group) -> what quantize gives.
    """

    quantize: Callable[[Tensor, int | None, str], tuple[Tensor, Tensor]]
    dequantize: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    shapes: Callable[[Sequence[int], int | None], Shapes]


def get_scheme(name: str) -> Scheme:
    """The scheme called `name`; ValueError that lists them for another."""
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}: use one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def check_device(name: str, device: torch.device) -> None:
    """ValueError in one sentence where `device` has no arithmetic for the scheme called `name`."""
    if get_scheme(name).weights != "fp8":
        return
    if device.type != "cuda":
        raise ValueError(f"{name} needs a CUDA GPU of compute capability 8.9 or more, not {device.type}")
    if (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        raise ValueError(
            f"{name} needs a CUDA GPU of compute capability 8.9 or more, this one has {found[0]}.{found[1]}"
        )


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


def _quantize_int4(weight: Tensor, group: int | None, clip: str) -> tuple[Tensor, Tensor]:
    return quantize_int4(weight, fitting_group(math.prod(weight.shape[1:]), group), clip)


def _quantize_fp8(weight: Tensor, _: int | None, _clip: str) -> tuple[Tensor, Tensor]:
    return quantize_fp8(weight)


WEIGHT_FORMATS = {
    "int8": WeightFormat(
        lambda weight, _, clip: quantize_int8(weight, clip),
        lambda values, scale, _: dequantize_channels(values, scale),
        _by_channel(torch.int8),
    ),
    "int4": WeightFormat(_quantize_int4, dequantize_int4, _by_group),
    "fp8": WeightFormat(
        _quantize_fp8, lambda values, scale, _: dequantize_channels(values, scale), _by_channel(FP8)
    ),
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
