"""Activations to bytes in few passes over memory: extremes, bytes, and norms and gates that write bytes.

Each function computes by the native library where there is one, else in plain torch. The plain one defines
the result: bytes and extremes of given numbers are equal, those of norms and gates up to the rounding of
float sums (a value on the edge between two levels may get either). Nothing here keeps gradients.

qparams: how the bytes are to be read, from calibration; None takes it from the numbers themselves, and then
NaN and infinity raise ValueError. A range from calibration makes some byte of them, unseen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize import native
from quantize.activations import QParams, Quantized, qparams_of, quantize_uint8, range_of

# SiLU falls to its least value at the turn and rises on both sides of it.
SILU_TURN, SILU_LEAST = -1.27846454, -0.27846454
# `GroupNorm` of quantize/native/group_norm.cpp.
GROUP_NORM = native.structure(
    "x weight bias shift coefficients range out bytes",
    "batch rows channels groups silu zero threads",
    eps=ctypes.c_float,
    scale=ctypes.c_float,
)


def quantize(x: Tensor, qparams: QParams | None) -> Quantized:
    """The bytes of x, in its memory format where that is dense."""
    x = _dense(x)
    made = _by_kernel("bytes", "pl", (x, x.numel()), torch.empty_like(x, dtype=torch.uint8), qparams)
    return made or _plain(x, qparams)


def group_norm_quantize(  # noqa: PLR0913 - a norm's parameters and what is fused to it
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    qparams: QParams | None,
    shift: Tensor | None = None,
) -> Quantized:
    """Bytes of the group norm of x [b, c, h, w] + shift [b, c], through SiLU if asked; channels last.

    With qparams None and SiLU the range is that of SiLU over the whole interval that its inputs span, so that
    one look before the norm is enough: the lower end is SiLU's least where the interval holds it.
    """
    norm = _checked_norm(x, groups, weight, bias, eps, shift)
    if _kernel("fw_group_norm", "p", norm["x"]) is None:
        y = _plain_norm(norm)
        if qparams is None:
            ends = range_of(y)
            qparams = qparams_of(*(silu_range(*ends) if silu else ends))
        return _plain(F.silu(y) if silu else y, qparams)
    ends = torch.empty(2) if qparams is None else None
    call = _with_statistics(norm, silu=silu, range=ends)
    qparams = qparams or qparams_of(*ends.tolist())
    values = torch.empty_like(norm["x"], dtype=torch.uint8)
    native.run("fw_group_norm", GROUP_NORM, **call, bytes=values, scale=qparams.scale, zero=qparams.zero)
    return Quantized(values, qparams)


def group_norm_silu(  # noqa: PLR0913 - a norm's parameters and what is fused to it
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None
) -> Tensor:
    """SiLU of the group norm of x [b, c, h, w] + shift [b, c]: float32, channels last."""
    norm = _checked_norm(x, groups, weight, bias, eps, shift)
    if _kernel("fw_group_norm", "p", norm["x"]) is None:
        return F.silu(_plain_norm(norm))
    out = torch.empty_like(norm["x"])
    native.run("fw_group_norm", GROUP_NORM, **_with_statistics(norm, silu=True), out=out, scale=1.0)
    return out


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, qparams: QParams | None
) -> Quantized:
    """Bytes of the layer norm of x [..., d] over its last axis."""
    x, weight, bias = _floats(x), _floats(weight), _floats(bias)
    width = x.shape[-1]
    _check_shapes({"weight": weight, "bias": bias}, (width,))
    rows, values = (x, x.numel() // width, width, weight, bias, eps), torch.empty(x.shape, dtype=torch.uint8)
    made = _by_kernel("layer_norm", "pllppf", rows, values, qparams)
    return made or _plain(F.layer_norm(x, (width,), weight, bias, eps), qparams)


def geglu_quantize(x: Tensor, qparams: QParams | None) -> Quantized:
    """Bytes of value * gelu(gate) [..., d], exact GELU, where x [..., 2 d] holds values, then gates."""
    x = _floats(x)
    if x.shape[-1] % 2:
        raise ValueError(f"x {list(x.shape)}: the last axis holds values and as many gates")
    width = x.shape[-1] // 2
    rows = (x, x.numel() // max(1, x.shape[-1]), width)
    values = torch.empty((*x.shape[:-1], width), dtype=torch.uint8)
    if made := _by_kernel("geglu", "pll", rows, values, qparams):
        return made
    value, gate = x.chunk(2, dim=-1)  # [..., d] each
    return _plain(value * F.gelu(gate), qparams)


def _checked_norm(  # noqa: PLR0913 - those of the public functions
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None
) -> dict[str, Any]:
    """The operands of a group norm by their names in `GROUP_NORM`, in the form that the kernels read."""
    if x.ndim != 4 or x.shape[1] % groups:
        raise ValueError(f"x {list(x.shape)}: expected [b, c, h, w], with c a multiple of groups={groups}")
    batch, channels = x.shape[:2]
    weight, bias, shift = _floats(weight), _floats(bias), None if shift is None else _floats(shift)
    _check_shapes({"weight": weight, "bias": bias}, (channels,))
    if shift is not None:
        _check_shapes({"shift": shift}, (batch, channels))
    x = _floats(x, torch.channels_last)
    return {"x": x, "groups": groups, "weight": weight, "bias": bias, "eps": eps, "shift": shift}


def _plain_norm(norm: Mapping[str, Any]) -> Tensor:
    x, shift = norm["x"], norm["shift"]
    x = x if shift is None else x + shift[:, :, None, None]
    out = torch.group_norm(x, norm["groups"], norm["weight"], norm["bias"], norm["eps"])
    return out.contiguous(memory_format=torch.channels_last)


def _with_statistics(norm: Mapping[str, Any], *, silu: bool, range: Tensor | None = None) -> dict[str, Any]:
    """The fields of `GROUP_NORM` that make numbers of x; range [2] is filled with the ends of these."""
    batch, channels, height, width = norm["x"].shape
    call = {**norm, "batch": batch, "rows": height * width, "channels": channels, "silu": silu}
    call |= {"coefficients": torch.empty(batch, 3, channels), "threads": torch.get_num_threads()}
    native.run("fw_group_norm_stats", GROUP_NORM, **call, range=range)
    return call


def silu_range(low: float, high: float) -> tuple[float, float]:
    """Smallest and largest value that SiLU takes between low and high; NaN where one of them is."""
    ends = F.silu(torch.tensor([low, high], dtype=torch.float32)).tolist()
    least = SILU_LEAST if low < SILU_TURN < high else min(ends)
    return least, max(ends)


def _by_kernel(
    name: str, signature: str, operands: tuple, values: Tensor, qparams: QParams | None
) -> Quantized | None:
    """The bytes that the kernel `fw_NAME` makes of its operands, in `values`; None where there is none."""
    kernel, threads = _kernel(f"fw_{name}", f"{signature}fllpp", operands[0]), torch.get_num_threads()
    if kernel is None:
        return None
    if qparams is None:
        ends = torch.empty(2)
        kernel(*operands, 1.0, 0, threads, None, ends)
        qparams = qparams_of(*ends.tolist())
    kernel(*operands, *qparams, threads, values, None)
    return Quantized(values, qparams)


def _plain(y: Tensor, qparams: QParams | None) -> Quantized:
    if qparams is None:
        qparams = qparams_of(*range_of(y))
    return Quantized(quantize_uint8(y, qparams), qparams)


def _kernel(name: str, signature: str, x: Tensor) -> Callable[..., None] | None:
    """The kernel, if x is one that kernels can read and there are any."""
    readable = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return native.function(name, signature) if readable else None


def _dense(x: Tensor) -> Tensor:
    """x without gradients; copied where its values do not fill one stretch of memory, or are bfloat16."""
    x = x.detach() if x.requires_grad else x
    x = x.float() if x.dtype == torch.bfloat16 else x  # exact, and what kernels read
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    dense = torch.empty_like(x, device="meta").stride() == x.stride()
    return x if dense else x.contiguous()


def _floats(x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """x as float32 without gradients that lies so; x itself, which costs nothing, where it is like that."""
    if x.dtype == torch.float32 and not x.requires_grad and x.is_contiguous(memory_format=layout):
        return x
    return x.detach().float().contiguous(memory_format=layout)


def _check_shapes(tensors: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} {list(tensor.shape)}: expected {list(shape)}")
