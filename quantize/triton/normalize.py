"""Norms whose output is bytes, on a GPU: the faces of the kernels in `norms`.

As `quantize.cpu.activations.group_norm_quantize` and `layer_norm_quantize`, up to the rounding of float sums,
for signed bytes and without waiting for the GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from quantize.triton import norms
from quantize.triton.activations import (
    MAX_PARTS,
    CudaQuantized,
    Modulation,
    Ranges,
    joined,
    new_qparams,
    write,
)

TILE_VALUES = 4096  # of a group, that a program has at once
SPAN_TILES = 4  # tiles one after another: fewer parts to join
NORM_WARPS = 4


def group_norm_quantize(
    norm: nn.GroupNorm, x: Tensor, ranges: Ranges | None, *, silu: bool, added: Tensor | None = None
) -> CudaQuantized:
    """Signed bytes, channels last, of the group norm of x [b, c, h, w] + added [b, c], and SiLU if asked."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    group, pixels = channels // norm.num_groups, height * width
    across = triton.next_power_of_2(group)
    tile = max(1, TILE_VALUES // across)
    span = tile * SPAN_TILES
    parts = triton.cdiv(pixels, span)
    floats = {"dtype": torch.float32, "device": x.device}
    stats = torch.empty((images * norm.num_groups, 3, parts), **floats)
    lows, highs = torch.empty((2, images, parts, channels), **floats)
    gain, shift = torch.empty((2, images, channels), **floats)
    ends = torch.empty((2, images * norm.num_groups), **floats)
    widths = {"WIDTH": across, "GROUP": group, "num_warps": NORM_WARPS}
    with torch.cuda.device_of(x):
        norms.look_at_groups[(images * norm.num_groups, parts)](
            x, added, stats, lows, highs, channels, pixels, span, PIXELS=tile, **widths
        )
        norms.finish_groups[(images * norm.num_groups,)](
            stats, lows, highs, norm.weight, norm.bias, added, gain, shift, ends, channels, parts, norm.eps,
            PARTS=triton.next_power_of_2(parts), **widths,
        )  # fmt: skip
        return write(x, Modulation(gain, shift, silu), ranges, None if ranges else ends)


def layer_norm_quantize(norm: nn.LayerNorm, x: Tensor, ranges: Ranges | None) -> CudaQuantized:
    """Signed bytes of the layer norm of x [..., d] over its last axis."""
    x = x.contiguous()
    depth = x.shape[-1]
    rows = x.numel() // depth
    values, qparams = torch.empty_like(x, dtype=torch.int8), new_qparams(x)
    given = (x, norm.weight, norm.bias)
    widths = {"DEPTH": depth, "WIDTH": triton.next_power_of_2(depth), "num_warps": NORM_WARPS}
    with torch.cuda.device_of(x):
        parts = None
        if ranges is None:
            parts = torch.empty((2, min(MAX_PARTS, rows)), dtype=torch.float32, device=x.device)
            norms.look_at_rows[(parts.shape[1],)](*given, parts, rows, norm.eps, **widths)
        programs, at_once = joined(parts)
        norms.write_rows[(rows,)](
            *given, values, *qparams, parts, programs, *(ranges or Ranges(None, None)), norm.eps,
            PARTS=at_once, **widths,
        )  # fmt: skip
    return CudaQuantized.of(values, qparams, x.dtype)
