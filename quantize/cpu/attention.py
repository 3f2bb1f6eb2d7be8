"""Attention on bytes: logits from int8, weights and values as bytes too; or all of it in bfloat16.

Zhang et al. 2024, "SageAttention": a row of queries or keys is int8 with a scale of its own, and the keys'
mean over the tokens, often far larger than what tells them apart, is taken away first. It adds the same to
all logits of a row, which softmax does not see. Weights are bytes of the largest that their row has within a
block of tokens, values int8 with a scale for each column of it: the smaller the block, the smaller the steps
of both, and the more often sums are scaled.

`attend_int8` and `attend_bf16` compute natively (quantize/native/attention.cpp); the tests have it
in plain torch. Where the kernel does not serve, torch's own attention computes, in the inputs' dtype and more
exactly.
"""

from __future__ import annotations

import ctypes
import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize import native
from quantize.activations import QParams, Quantized
from quantize.cpu.activations import quantize

log = logging.getLogger(__name__)

TILE = 16  # tokens that lie together as the kernel keeps them
BLOCK = 48  # tokens whose byte weights are relative to the largest of them
GROUP_BYTES = 4  # of a row of codes in one instruction
STRIDES = ctypes.c_int64 * 3  # of batch, head and row
# `Call` of quantize/native/attention.h.
ARGUMENTS = native.structure(
    "q k v out codes values value_scale scale start norm bytes",
    "batch heads queries tokens width row_bytes precise threads",
    q_stride=STRIDES,
    k_stride=STRIDES,
    v_stride=STRIDES,
    zero=ctypes.c_int64,
    step=ctypes.c_float,
)


def attend_int8(q: Tensor, k: Tensor, v: Tensor, qparams: QParams | None = None) -> Tensor | Quantized:
    """softmax(q k^T / sqrt(d)) v, within about 1.2 % where logits spread by 1 (docs/attention.md has more).

    q: [b, heads, n, d], k and v: [b, heads, m, d], float32, of any strides. The output is [b, heads, n, d] on
    contiguous [b, n, heads * d]: joining the heads is free. NaN and infinity come out as NaN: of a query in
    its row, of a key in all rows of its head, of a value in its column. So do logits beyond ten million.

    qparams: the output is bytes [b, n, heads * d] of these, as `activations.quantize` would make of it, but
    for numbers on the edge between two.
    """
    return _attend(q, k, v, qparams, precise=False)


def attend_bf16(q: Tensor, k: Tensor, v: Tensor, qparams: QParams | None = None) -> Tensor | Quantized:
    """As `attend_int8` with logits from bfloat16: a third of its error, at up to 1.6 times its time."""
    return _attend(q, k, v, qparams, precise=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, qparams: QParams | None, *, precise: bool) -> Tensor | Quantized:
    if not _suits(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v)
        return out if qparams is None else quantize(out.transpose(1, 2).flatten(2), qparams)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    (batch, heads, queries, width), tokens = q.shape, k.shape[-2]
    all_heads, row_bytes = batch * heads, _up((2 if precise else 1) * width, GROUP_BYTES)
    rows = all_heads * _up(tokens, TILE)  # of keys and values, filled up to whole tiles
    kind = torch.float32 if qparams is None else torch.uint8
    out = q.new_empty(batch, queries, heads, width, dtype=kind)
    step, zero = qparams or (1.0, 0)  # read for bytes alone
    native.run(
        "fw_attend", ARGUMENTS, q=q, k=k, v=v, out=out, bytes=None if qparams is None else out,
        codes=q.new_empty(rows, row_bytes, dtype=torch.uint8),
        values=q.new_empty(rows, width + 1, dtype=torch.bfloat16 if precise else torch.int8),
        value_scale=q.new_empty(all_heads, -(-tokens // BLOCK), width + 1),
        scale=q.new_empty(rows), start=q.new_empty(rows, dtype=torch.int32), norm=q.new_empty(all_heads),
        batch=batch, heads=heads, queries=queries, tokens=tokens, width=width, row_bytes=row_bytes,
        precise=precise, threads=torch.get_num_threads(), zero=zero, step=step,
        **{f"{name}_stride": t.stride()[:3] for name, t in (("q", q), ("k", k), ("v", v))},
    )  # fmt: skip
    return out.transpose(1, 2) if qparams is None else Quantized(out.flatten(2), qparams)


def _suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel may take them; what is wrong with the rest, torch's attention says."""
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.ndim == 4 for t in (q, k, v))
    if not plain or (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))):
        return False
    (batch, heads, _, width), tokens = q.shape, k.shape[-2]
    fits = k.shape == v.shape == (batch, heads, tokens, width)
    return fits and q.numel() > 0 and k.numel() > 0 and width <= _widest()


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


@functools.cache
def _widest() -> int:
    """The largest width of a head that the kernel takes: 0 where it was not built."""
    width = ctypes.c_int64(0)
    ask = native.function("fw_attend_widest", "p")
    if ask is not None:
        ask(ctypes.byref(width))
        if not width.value:
            log.warning("this CPU lacks avx512_bf16 or avx512_vbmi: torch computes the attention instead")
    return width.value
