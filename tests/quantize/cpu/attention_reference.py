"""What the attention kernel computes, in plain torch: slow, and by definition right."""

import math

import torch

from quantize.arithmetic import INT8_PEAK, TINY
from quantize.cpu.attention import BLOCK

STEPS = 128  # between two powers of two: bfloat16 has seven bits of fraction
MANTISSA_EDGE = 0.25  # above it a level is rounded up: half would bias the halves, quarters, ... of mantissas
ONE = 127 * STEPS  # the bits of 1 in bfloat16


def reference(q, k, v, *, precise=False):
    """What `attend_bf16` (precise) or `attend_int8` gives, in plain torch: slow, and by definition right."""
    to_log2 = math.log2(math.e) / math.sqrt(q.shape[-1])
    centred = k - k.mean(dim=-2, keepdim=True)
    if precise:
        logits = q.bfloat16().double() @ centred.bfloat16().double().transpose(-1, -2)  # [b, heads, n, m]
        steps = logits * (to_log2 * STEPS)
    else:
        (q_codes, q_scale), (k_codes, k_scale) = _to_int8(q), _to_int8(centred)
        logits = (q_codes @ k_codes.transpose(-1, -2)) * k_scale.transpose(-1, -2)
        steps = logits.double() * (q_scale * (to_log2 * STEPS))
    steps = steps.round()
    steps = steps - STEPS * (steps.amax(dim=-1, keepdim=True) / STEPS).ceil()  # a row's largest is 1/2 to 1
    weights = _powers_of_two(steps) if precise else _byte_weights(steps)
    values = v.bfloat16() if precise else byte_values(v)
    out = (weights @ values.double() / weights.sum(dim=-1, keepdim=True)).float()
    worst = q.abs().amax(dim=-1, keepdim=True) + k.abs().amax(dim=(-1, -2), keepdim=True)
    return out + 0 * worst  # levels of NaN and infinity mean nothing


def _byte_weights(steps):
    """2^(steps / 128) as whole numbers up to 255 of the row's largest in each block of tokens."""
    mantissas = (255 * (-torch.arange(STEPS, dtype=torch.float64) / STEPS).exp2() - MANTISSA_EDGE).ceil()
    blocks = []
    for block in steps.split(BLOCK, dim=-1):
        top = block.amax(dim=-1, keepdim=True)
        whole = ((top - block) / STEPS).floor()
        mantissa = mantissas[(top - block - whole * STEPS).nan_to_num().long()]
        level = (mantissa * (-whole).exp2() - 0.5).ceil()
        blocks.append(level * (top / STEPS).exp2())
    return torch.cat(blocks, dim=-1)


def byte_values(v):
    """Values [..., m, d] as int8 codes with a scale for each column of a block of tokens say them."""
    blocks = (_to_int8(block, dim=-2) for block in v.split(BLOCK, dim=-2))
    return torch.cat([codes * scale for codes, scale in blocks], dim=-2)


def _to_int8(rows, dim=-1):
    """Rows along `dim` -> whole numbers in [-127, 127] as float32, and a float32 scale for each."""
    scale = rows.abs().amax(dim=dim, keepdim=True) / INT8_PEAK
    scale = torch.where(scale < TINY, 0, scale)
    return (rows * torch.where(scale == 0, 0, 1 / scale)).round(), scale


def _powers_of_two(steps):
    """2^(steps / 128) for whole numbers up to 0, rounded to bfloat16; zero below its normal range."""
    fractions = ((torch.arange(STEPS, dtype=torch.float64) / STEPS).exp2() - 1).mul(STEPS).round()
    whole = (steps / STEPS).floor()
    fraction = fractions[(steps - whole * STEPS).nan_to_num().long()]
    return torch.where(steps + ONE < STEPS, 0, whole.exp2() * (1 + fraction / STEPS))
