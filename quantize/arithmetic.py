"""Numbers on few levels: the formulas that every scheme and backend is held against.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference": x is about scale * (q - zero). Weights are symmetric, with a scale for each output channel (int8,
fp8) or for each group of consecutive inputs (int4); activations are unsigned bytes with a zero point. Values
too small for a normal float32 step count as zeros. NaN and infinity have no level and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

INT8_PEAK = 127  # -128 is left out, so that +x and -x get the same steps
INT4_LOW, INT4_HIGH = -8, 7
FP8 = torch.float8_e4m3fn
FP8_PEAK = torch.finfo(FP8).max  # 448: e4m3fn has no infinity
TINY = torch.finfo(torch.float32).tiny  # below it numbers lose digits, and their inverse may be infinite
MIN_GROUP, MAX_GROUP = 32, 128
CLIPS = ("mse", "max")  # how a weight's step is chosen: by its squared error, or to reach the largest value
PIECE_VALUES = 1 << 22  # of a weight in work at a time: the search holds a few float32 copies of them
# Steps as a share of the one that just reaches the largest value. One outlier costs its clipped part squared
# and the other n inputs gain n / 12 / 127**2: int8 clips little, and only where n is in the thousands. int4
# reaches its largest value at level -8; a step of 8/7 puts it on level 7.
INT8_RATIOS = tuple(1 - 0.02 * i for i in range(11))
INT4_RATIOS = tuple(0.6 + 0.03 * i for i in range(19))


def sqnr_db(expected: Tensor, got: Tensor) -> float:
    """Signal over quantization noise in decibels; infinity where nothing differs. About 6 dB a bit."""
    signal, noise = expected.double().square().sum(), (expected.double() - got.double()).square().sum()
    if noise == 0:
        return math.inf
    return (10 * torch.log10(signal / noise)).item()


def check_finite(tensor: Tensor, what: str) -> None:
    """ValueError in one sentence where `tensor`, called `what`, holds NaN or infinity."""
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise ValueError(f"{what} has {bad} values that are NaN or infinite: only numbers can be quantized")


def quantize_int8(weight: Tensor, clip: str = "mse") -> tuple[Tensor, Tensor]:
    """Weight [out, ...] -> int8 of the same shape in [-127, 127], and float32 scales [out].

    clip: "max" reaches the largest value of a channel, "mse" the step with the least squared error. Raises
    ValueError for NaN, infinity or an unknown clip.
    """
    ratios = _ratios(clip, INT8_RATIOS)

    def rows(part: Tensor) -> tuple[Tensor, Tensor]:
        step = _usable(part.abs().amax(dim=1) / INT8_PEAK)
        step = _best_step(part, step, ratios, -INT8_PEAK, INT8_PEAK)
        return _to_levels(part, step, -INT8_PEAK, INT8_PEAK), step

    values, scale = _by_rows(weight.flatten(1), rows, (torch.int8, torch.float32))
    return values.view(weight.shape), scale


def dequantize_channels(values: Tensor, scale: Tensor) -> Tensor:
    """int8 or fp8 codes [out, ...] and scales [out] -> float32 [out, ...]."""
    return values.float() * scale.float().view(-1, *[1] * (values.ndim - 1))


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, ...] -> float8_e4m3fn of the same shape that uses its whole range, float32 scales [out].

    Raises ValueError for NaN or infinity.
    """

    def rows(part: Tensor) -> tuple[Tensor, Tensor]:
        step = _short(part.abs().amax(dim=1) / FP8_PEAK)
        return to_fp8(part, step[:, None]), step

    values, scale = _by_rows(weight.flatten(1), rows, (FP8, torch.float32))
    return values.view(weight.shape), scale


def to_fp8(x: Tensor, scale: Tensor | float) -> Tensor:
    """x / scale in float8_e4m3fn; what is beyond its range becomes its largest value, never NaN."""
    return (x.float() / scale).clamp(-FP8_PEAK, FP8_PEAK).to(FP8)


def quantize_int4(weight: Tensor, group: int, clip: str = "mse") -> tuple[Tensor, Tensor]:
    """Weight [out, ...] -> two levels a byte, uint8 [out, groups, group / 2], bfloat16 scales [out, groups].

    Groups run along the flattened inputs, the last is filled up with zeros. The value farthest from zero
    gets level -8, which the scale's sign allows for both directions: all 16 levels are used. bfloat16 has
    float32's range, so that a scale is never lost. Errors as `quantize_int8`; ValueError too for a group that
    is odd or not in [32, 128].
    """
    _check_group(group)
    ratios = _ratios(clip, INT4_RATIOS)

    def rows(part: Tensor) -> tuple[Tensor, Tensor]:
        grouped = _to_groups(part, group)  # [out, groups, group]
        flat = grouped.flatten(0, 1)  # [out * groups, group]
        peak = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
        step = _best_step(flat, _usable(peak / INT4_LOW), ratios, INT4_LOW, INT4_HIGH)
        levels = _to_levels(flat, step, INT4_LOW, INT4_HIGH).view(grouped.shape)
        return pack_int4(levels), step.bfloat16().view(grouped.shape[:2])

    return _by_rows(weight.flatten(1), rows, (torch.uint8, torch.bfloat16))


def dequantize_int4(packed: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """What `quantize_int4` made of a weight of `shape` -> float32 of that shape."""
    values = unpack_int4(packed).float() * scale.float()[..., None]  # [out, groups, group]
    inputs = math.prod(shape[1:])  # without what filled up the last group
    return values.flatten(1)[:, :inputs].reshape(shape)


def _check_group(group: int) -> None:
    if not MIN_GROUP <= group <= MAX_GROUP or group % 2:
        raise ValueError(f"group={group}: int4 groups hold an even number of inputs, 32 to 128")


def fitting_group(inputs: int, group: int) -> int:
    """`group`, or less where a row of `inputs` would not fill one: an even number, 32 or more."""
    return min(group, max(MIN_GROUP, inputs + inputs % 2))


def _to_groups(rows: Tensor, group: int) -> Tensor:
    return F.pad(rows, (0, -rows.shape[1] % group)).unflatten(1, (-1, group))


def pack_int4(levels: Tensor) -> Tensor:
    """int8 levels [..., n] in [-8, 7] -> uint8 [..., n / 2]; the first of two is in the low half."""
    halves = levels.view(torch.uint8) & 0xF
    return halves[..., ::2] | (halves[..., 1::2] << 4)  # [..., n / 2]


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [..., n / 2] -> int8 [..., n]; undoes `pack_int4`."""
    # Shifting left and back right in int8 repeats the sign bit.
    both = torch.stack([packed << 4, packed], dim=-1).view(torch.int8) >> 4
    return both.flatten(-2)  # [..., n]


def _to_levels(rows: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    return (rows / step[:, None]).round_().clamp_(low, high).to(torch.int8)


def _best_step(rows: Tensor, step: Tensor, ratios: Sequence[float], low: int, high: int) -> Tensor:
    """For each row [n, k] the one of `step` [n] times `ratios` that loses least, by squared error.

    All of them are rounded to bfloat16, so that files may hold them as such and nothing is lost.
    """
    best, least = _short(step), torch.full_like(step, math.inf)
    for ratio in ratios:
        candidate = _short(step * ratio)
        back = (rows / candidate[:, None]).round_().clamp_(low, high).mul_(candidate[:, None])
        loss = back.sub_(rows).square_().sum(dim=1)
        best = torch.where(loss < least, candidate, best)
        least = torch.minimum(loss, least)
    return best


def _usable(step: Tensor) -> Tensor:
    return torch.where(step.abs() < TINY, torch.ones_like(step), step)


def _short(step: Tensor) -> Tensor:
    return _usable(step.bfloat16().float())


def _ratios(clip: str, searched: Sequence[float]) -> Sequence[float]:
    if clip not in CLIPS:
        raise ValueError(f"clip={clip!r}: use one of {', '.join(CLIPS)}")
    return searched if clip == "mse" else (1.0,)


def _by_rows(
    rows: Tensor, change: Callable[[Tensor], tuple[Tensor, Tensor]], dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """`change` of a few rows [n, k] at a time: little memory beside the result, whatever the layer's size."""
    check_finite(rows, "a weight")
    count = max(1, PIECE_VALUES // max(1, rows.shape[1]))
    parts = [change(part.float()) for part in rows.detach().split(count)]
    values, scales = (torch.cat(kind) for kind in zip(*parts, strict=True))
    assert (values.dtype, scales.dtype) == dtypes, f"promised {dtypes}, made {values.dtype}, {scales.dtype}"
    return values, scales
