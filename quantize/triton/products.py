"""Linear and Conv2d over codes on a GPU: the faces of the kernels in `multiply`.

Activations come channels last; what leaves is channels last too. Which tile sizes are fastest is measured by
Triton on the GPU, once for each shape, and remembered on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from quantize.schemes import Geometry
from quantize.triton import multiply as kernels

# Rows, columns and depth of a tile, warps, stages. Small ones are for few pixels: 128 rows of 1280 channels
# would keep ten multiprocessors busy.
TILES = (
    (128, 256, 64, 8, 3), (128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (128, 64, 64, 4, 4),
    (64, 128, 64, 4, 4), (64, 64, 128, 4, 4), (64, 32, 128, 4, 5), (32, 64, 128, 4, 5), (16, 64, 128, 4, 5),
)  # fmt: skip
LEAST_ROWS = 16
INTERPRETED = triton.knobs.runtime.interpret
INTERPRETED_TILE = {"ROWS": 64, "COLUMNS": 16, "DEPTH": 32}  # several of them even in small tests
# A library writes sums of 32 bits that are then read again: 8 bytes for 2 * inputs operations. Below so many
# inputs that alone takes a Hopper GPU (4.8 TB/s, 1979 Tera-operations a second) longer than to multiply.
LIBRARY_INPUTS = 2048
LIBRARY_ROWS = 17  # `torch._int_mm` takes no fewer
LIBRARY_ALIGN = 16
RESCALE_TILE = {"ROWS": 16, "COLUMNS": 256}
ONE_TAP = Geometry((1, 1), (0, 0), (1, 1), 1)


class Weights(NamedTuple):
    """Of one layer, on the GPU."""

    values: Tensor  # int8 or fp8 [out, taps, in]; of int4 two a byte, uint8 [out, taps, in / 2]
    scale: Tensor  # float32 [out]; of int4 bfloat16 [out, scales]
    inputs: int  # of one output, a tap
    taps: tuple[int, int] = (1, 1)  # height, width
    sharing: int | None = None  # how many weights have one scale, of int4
    sums: Tensor | None = None  # int32 [out], of int8


class Activations(NamedTuple):
    """What is multiplied."""

    values: Tensor  # int8 or fp8 codes, or floats as they are, [..., c]
    scale: Tensor | None = None  # [1], of codes
    zero: Tensor | None = None  # [1], of int8


def linear(x: Activations, weights: Weights, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[..., in] -> [..., out] of `dtype`."""
    values = x.values.reshape(-1, weights.inputs).contiguous()  # bytes keep the order of their floats
    out = torch.empty((len(values), len(weights.values)), dtype=dtype, device=values.device)
    with torch.cuda.device_of(values):
        if _for_library(values, weights):
            _by_library(x._replace(values=values), weights, bias, out)
        else:
            sizes = (1, 1, 1, 1)
            _product(x._replace(values=values), weights, bias, out, ONE_TAP, sizes)
    return out.view(*x.values.shape[:-1], out.shape[-1])


def conv2d(
    x: Activations, weights: Weights, bias: Tensor | None, dtype: torch.dtype, geometry: Geometry
) -> Tensor:
    """[b, c, h, w] -> [b, out, h', w'] of `dtype`, both channels last in memory."""
    values = x.values.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    if (weights.taps, geometry) == ((1, 1), ONE_TAP):
        return linear(x._replace(values=values), weights, bias, dtype).permute(0, 3, 1, 2)
    images, height, width, _ = values.shape
    out_size = _output_size((height, width), weights.taps, geometry)
    out = torch.empty((images, *out_size, len(weights.values)), dtype=dtype, device=values.device)
    with torch.cuda.device_of(values):
        _product(x._replace(values=values), weights, bias, out, geometry, (height, width, *out_size))
    return out.permute(0, 3, 1, 2)


def _output_size(size: Sequence[int], taps: Sequence[int], geo: Geometry) -> tuple[int, ...]:
    axes = zip(size, taps, geo.stride, geo.padding, geo.dilation, strict=True)
    return tuple((n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in axes)


def by_taps(values: Tensor) -> Tensor:
    """int8 or fp8 codes [out, in, height, width] or [out, in] -> [out, taps, in], in order in memory."""
    if values.ndim == 2:
        return values[:, None]
    return values.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def pack_halves(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """`arithmetic.pack_int4`'s bytes of a weight of `shape` -> [out, taps, in / 2].

    A byte holds input j in its low and input j + in / 2 in its high half, so that a tile of bytes is two
    tiles of neighbouring inputs.
    """
    levels = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, : math.prod(shape[1:])]
    levels = by_taps(levels.reshape(tuple(shape)))  # [out, taps, in]
    low, high = F.pad(levels, (0, levels.shape[-1] % 2)).chunk(2, dim=-1)
    return (low | (high << 4)).contiguous()


def _product(
    x: Activations, weights: Weights, bias: Tensor | None, out: Tensor, geo: Geometry, sizes: tuple
) -> None:
    rows, columns = out.numel() // out.shape[-1], out.shape[-1] // geo.groups
    shape = (rows, columns, weights.inputs, *sizes, x.values.shape[-1], out.shape[-1])
    geometry = (weights.taps[1], math.prod(weights.taps), *geo.stride, *geo.padding, *geo.dilation)

    def grid(tile: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(columns, tile["COLUMNS"]), geo.groups

    tile = INTERPRETED_TILE if INTERPRETED else {}
    if weights.sharing:
        tensors = (x.values, weights.values, out, weights.scale, bias)
        strides = (weights.scale.shape[1], weights.values.shape[-1])
        MULTIPLY_INT4[grid](*tensors, *strides, *shape, *geometry, weights.sharing, **tile)
    else:
        tensors = (x.values, weights.values, out, x.scale, x.zero, weights.scale, weights.sums, bias)
        MULTIPLY[grid](*tensors, *shape, *geometry, **tile)


def _for_library(values: Tensor, weights: Weights) -> bool:
    """Whether there is a library's product of codes for these sizes, and reason to take it."""
    columns, inputs = len(weights.values), weights.inputs
    even = columns % LIBRARY_ALIGN == 0 and inputs % LIBRARY_ALIGN == 0
    return (
        values.dtype == weights.values.dtype
        and even
        and len(values) >= LIBRARY_ROWS
        and inputs >= LIBRARY_INPUTS
    )


def _by_library(x: Activations, weights: Weights, bias: Tensor | None, out: Tensor) -> None:
    right = weights.values.flatten(1).t()
    if x.values.dtype == torch.int8:
        sums = torch._int_mm(x.values, right)
    else:
        one = torch.ones((), dtype=torch.float32, device=out.device)
        sums = torch._scaled_mm(x.values, right, scale_a=one, scale_b=one, out_dtype=torch.float32)
    rows, columns = out.shape
    tiles = (triton.cdiv(rows, RESCALE_TILE["ROWS"]), triton.cdiv(columns, RESCALE_TILE["COLUMNS"]))
    kernels.rescale[tiles](
        sums, out, x.scale, x.zero, weights.scale, weights.sums, bias, rows, columns, **RESCALE_TILE
    )


def _fitting(configs: list, sizes: dict[str, Any], **_: Any) -> list:
    """Tiles that are not mostly empty, nor too few to keep a GPU busy where smaller ones would."""
    rows = max(LEAST_ROWS, triton.next_power_of_2(sizes["rows"]))
    columns = max(LEAST_ROWS, triton.next_power_of_2(sizes["columns"]))
    fits = [c for c in configs if c.kwargs["ROWS"] <= rows and c.kwargs["COLUMNS"] <= max(columns, 32)]
    return fits or configs[-1:]


def _tuned(kernel: Any) -> Any:
    """`kernel`, which chooses its tiles by trying them on the GPU."""
    if INTERPRETED:
        return kernel
    configs = [
        triton.Config({"ROWS": r, "COLUMNS": c, "DEPTH": d}, num_warps=warps, num_stages=stages)
        for r, c, d, warps, stages in TILES
    ]
    return triton.autotune(
        configs,
        key=["rows", "columns", "inside", "TAPS"],
        prune_configs_by={"early_config_prune": _fitting},
        cache_results=True,
    )(kernel)


MULTIPLY, MULTIPLY_INT4 = _tuned(kernels.multiply), _tuned(kernels.multiply_int4)
