"""Activations to bytes in few passes over memory: extremes, bytes, and norms and gates that write bytes.

Each function computes by the native library where there is one, else in plain torch. The plain one defines
the result: bytes and extremes of given numbers are equal, those of norms and gates up to the rounding of
float sums (a value on the edge between two levels may get either). Nothing here keeps gradients.

qparams: how the bytes are to be read, from calibration; None takes it from the numbers themselves, and then
NaN and infinity raise ValueError. A range from calibration makes some byte of them, unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize import native
from quantize.activations import QParams, Quantized, qparams_of, quantize_uint8, range_of

# SiLU falls to its least value at the turn and rises on both sides of it.
SILU_TURN, SILU_LEAST = -1.27846454, -0.27846454
READ = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # by kernels, as they are


def min_max(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value of x; (0, 0) of nothing, NaN where one is NaN."""
    x = _dense(x)
    kernel = _kernel(f"fw_min_max_{READ.get(x.dtype)}", "pllp", x)
    return range_of(x) if kernel is None else _ends(kernel, x, x.numel(), torch.get_num_threads())


def quantize(x: Tensor, qparams: QParams | None) -> Quantized:
    """The bytes of x, in its memory format where that is dense."""
    x = _dense(x)
    if qparams is None:
        qparams = qparams_of(*min_max(x))
    kernel = _kernel(f"fw_bytes_{READ.get(x.dtype)}", "plfllp", x)
    if kernel is None:
        return Quantized(quantize_uint8(x, qparams), qparams)
    values = torch.empty_like(x, dtype=torch.uint8)
    kernel(x, x.numel(), *qparams, torch.get_num_threads(), values)
    return Quantized(values, qparams)


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
    norm = _GroupNorm(x, groups, weight, bias, eps, shift)
    return norm.plain_bytes(silu, qparams) if norm.stats is None else norm.native_bytes(silu, qparams)


def group_norm_silu(  # noqa: PLR0913 - a norm's parameters and what is fused to it
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None
) -> Tensor:
    """SiLU of the group norm of x [b, c, h, w] + shift [b, c]: float32, channels last."""
    norm = _GroupNorm(x, groups, weight, bias, eps, shift)
    return F.silu(norm.plain()) if norm.stats is None else norm.native_silu()


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, qparams: QParams | None
) -> Quantized:
    """Bytes of the layer norm of x [..., d] over its last axis."""
    x, weight, bias = _floats(x), _floats(weight), _floats(bias)
    width = x.shape[-1]
    _check_shapes({"weight": weight, "bias": bias}, (width,))
    rows = (x, x.numel() // width, width, weight, bias, eps)
    made = _quantize_rows("layer_norm", "pllppf", rows, x.shape, qparams)
    return made or _plain(F.layer_norm(x, (width,), weight, bias, eps), qparams)


def geglu_quantize(x: Tensor, qparams: QParams | None) -> Quantized:
    """Bytes of value * gelu(gate) [..., d], exact GELU, where x [..., 2 d] holds values, then gates."""
    x = _floats(x)
    if x.shape[-1] % 2:
        raise ValueError(f"x {list(x.shape)}: the last axis holds values and as many gates")
    width = x.shape[-1] // 2
    rows = (x, x.numel() // max(1, x.shape[-1]), width)
    if made := _quantize_rows("geglu", "pll", rows, (*x.shape[:-1], width), qparams):
        return made
    value, gate = x.chunk(2, dim=-1)
    return _plain(value * F.gelu(gate), qparams)


class _GroupNorm:
    """One call's operands, checked, in the form that the kernels read."""

    def __init__(  # noqa: PLR0913 - those of the public functions
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None
    ) -> None:
        if x.ndim != 4 or x.shape[1] % groups:
            raise ValueError(
                f"x {list(x.shape)}: expected [b, c, h, w], with c a multiple of groups={groups}"
            )
        self.x = _floats(x, torch.channels_last)
        self.groups, self.eps = groups, eps
        self.weight, self.bias = _floats(weight), _floats(bias)
        self.shift = None if shift is None else _floats(shift)
        batch, channels, height, width = x.shape
        _check_shapes({"weight": self.weight, "bias": self.bias}, (channels,))
        if shift is not None:
            _check_shapes({"shift": self.shift}, (batch, channels))
        self.size = (batch, height * width, channels)
        self.stats = _kernel("fw_group_norm_stats", "pllllpppfllpp", self.x)

    def plain(self) -> Tensor:
        x = self.x if self.shift is None else self.x + self.shift[:, :, None, None]
        out = torch.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return out.contiguous(memory_format=torch.channels_last)

    def plain_bytes(self, silu: bool, qparams: QParams | None) -> Quantized:
        y = self.plain()
        if qparams is None:
            ends = range_of(y)
            qparams = qparams_of(*(silu_range(*ends) if silu else ends))
        return _plain(F.silu(y) if silu else y, qparams)

    def native_bytes(self, silu: bool, qparams: QParams | None) -> Quantized:
        coefficients, ends = self._coefficients(silu, qparams is None)
        if qparams is None:
            qparams = qparams_of(*ends)
        values = torch.empty_like(self.x, dtype=torch.uint8)
        kernel = _kernel("fw_group_norm_bytes", "plllplfllp", self.x)
        kernel(self.x, *self.size, coefficients, silu, *qparams, torch.get_num_threads(), values)
        return Quantized(values, qparams)

    def native_silu(self) -> Tensor:
        coefficients, _ = self._coefficients(True, False)
        out, kernel = torch.empty_like(self.x), _kernel("fw_group_norm_silu", "plllplp", self.x)
        threads = torch.get_num_threads()
        kernel(self.x, *self.size, coefficients, threads, out)
        return out

    def _coefficients(self, silu: bool, wants_ends: bool) -> tuple[Tensor, list[float] | None]:
        """[b, 3, c] that turn x into its norm, and where wanted the ends of what comes out at last."""
        batch, _, channels = self.size
        coefficients, ends = torch.empty(batch, 3, channels), torch.empty(2) if wants_ends else None
        norm = (self.groups, self.weight, self.bias, self.shift, self.eps)
        self.stats(self.x, *self.size, *norm, silu, torch.get_num_threads(), coefficients, ends)
        return coefficients, None if ends is None else ends.tolist()


def silu_range(low: float, high: float) -> tuple[float, float]:
    """Smallest and largest value that SiLU takes between low and high; NaN where one of them is."""
    ends = F.silu(torch.tensor([low, high], dtype=torch.float32)).tolist()
    least = SILU_LEAST if low < SILU_TURN < high else min(ends)
    return least, max(ends)


def _quantize_rows(
    name: str, signature: str, rows: tuple, shape: Sequence[int], qparams: QParams | None
) -> Quantized | None:
    """What the kernels `fw_NAME_range` and `fw_NAME_bytes` make of `rows`; None where there are none."""
    kernel, threads = _kernel(f"fw_{name}_bytes", f"{signature}fllp", rows[0]), torch.get_num_threads()
    if kernel is None:
        return None
    if qparams is None:
        look = _kernel(f"fw_{name}_range", f"{signature}lp", rows[0])
        qparams = qparams_of(*_ends(look, *rows, threads))
    values = torch.empty(shape, dtype=torch.uint8)
    kernel(*rows, *qparams, threads, values)
    return Quantized(values, qparams)


def _plain(y: Tensor, qparams: QParams | None) -> Quantized:
    if qparams is None:
        qparams = qparams_of(*range_of(y))
    return Quantized(quantize_uint8(y, qparams), qparams)


def _kernel(name: str, signature: str, x: Tensor) -> Callable[..., None] | None:
    """The kernel, if x is one that kernels can read and there are any."""
    readable = x.device.type == "cpu" and x.dtype in READ and x.numel()
    return native.function(name, signature) if readable else None


def _ends(kernel: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    ends = torch.empty(2)
    kernel(*arguments, ends)
    low, high = ends.tolist()
    return low, high


def _dense(x: Tensor) -> Tensor:
    """x without gradients; copied where its values do not fill one stretch of memory."""
    x = x.detach() if x.requires_grad else x
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
