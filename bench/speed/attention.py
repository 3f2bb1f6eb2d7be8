"""How fast and how exact is the attention of one layer? torch's, in float32 and bfloat16, beside ours.

    python -m bench.speed.attention

Sizes are those of Stable Diffusion 1.5 at 512 pixels with guidance (batch 2). Rounds are interleaved, so that
whatever else the machine does meets all alike; the table shows medians. Inputs are Gaussian: times do not
depend on them as long as logits stay below about 40, errors do. The error is that of 256 rows to float64,
relative to their length, for logits that spread by 1 (flat rows) and by 5 (a few tokens share a row).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import MS, PERCENT, ROUNDS, Bench, BenchFlags, Column, chosen, table_of
from bench.processes import interleaved
from bench.results import Measurement
from common.flags import flag
from quantize.cpu.attention import attend_bf16, attend_int8

SEED = 0
ERROR_ROWS = 256  # whose error is measured
SPREADS = (1.0, 5.0)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
AttentionSize = tuple[int, int, int, int, int]  # batch, heads, queries, tokens, width of a head
COLUMNS = (
    Column("ms", "wall", "{:.1f}", MS),
    Column("fastest to slowest", "wall", "{low:.1f} to {high:.1f}", MS),
    Column("gain", "gain"),
    *(Column(f"error, logits spread by {s:g}", f"error at {s:g}", "{:.2f} %", PERCENT) for s in SPREADS),
)


@dataclass(frozen=True)
class AttentionFlags(BenchFlags):
    """The command line."""

    only: tuple[str, ...] = flag((), "layers (default: all)", "--only", "--sizes", metavar="NAME")
    rounds: int = flag(7, ROUNDS)


def torch_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused attention in bfloat16, from and to float32."""
    return F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()


def inputs(size: AttentionSize, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian q, k and v as a layer hands them on: views of [b, n, heads * d]."""
    batch, heads, queries, tokens, width = size
    noise = torch.Generator().manual_seed(SEED)
    drawn = (torch.randn(batch, n, heads, width, generator=noise) for n in (queries, tokens, tokens))
    q, k, v = (t.transpose(1, 2) for t in drawn)
    return q * spread, k, v


def error(attend: Attend, size: AttentionSize, spread: float) -> float:
    """Length of what differs from float64 over the length of the output, on some rows of the first head."""
    q, k, v = (t[:1, :1] for t in inputs(size, spread))
    q = q[:, :, :ERROR_ROWS]
    logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    expected = torch.softmax(logits, dim=-1) @ v.double()
    return ((attend(q, k, v) - expected).norm() / expected.norm()).item()


def measure(flags: AttentionFlags) -> Iterator[Measurement]:
    """For each size and way: seconds of a call, times faster than the first, errors by the logits' spread."""
    for name in chosen(flags.only, SIZES, "layer"):
        q, k, v = inputs(SIZES[name], 1.0)
        costs = interleaved({way: partial(attend, q, k, v) for way, attend in WAYS.items()}, flags.rounds)
        walls = {
            way: Measurement.of(f"{name} | {way}", "wall", "s", [cost.wall for cost in taken])
            for way, taken in costs.items()
        }
        first = next(iter(walls.values())).value
        for way, wall in walls.items():
            yield wall
            yield Measurement(wall.subject, "gain", first / wall.value, "times")
            for spread in SPREADS:
                found = error(WAYS[way], SIZES[name], spread)
                yield Measurement(wall.subject, f"error at {spread:g}", found, "of its size")


WAYS: dict[str, Attend] = {
    "torch fp32": F.scaled_dot_product_attention,
    "torch bf16": torch_bf16,
    "attend_int8": attend_int8,
    "attend_bf16": attend_bf16,
}
SIZES: dict[str, AttentionSize] = {
    "self-64x64": (2, 8, 4096, 4096, 40),
    "self-32x32": (2, 8, 1024, 1024, 80),
    "self-16x16": (2, 8, 256, 256, 160),
    "self-8x8": (2, 8, 64, 64, 160),
    "text-64x64": (2, 8, 4096, 77, 40),
    "text-32x32": (2, 8, 1024, 77, 80),
    "sd21-64x64": (2, 5, 4096, 4096, 64),
}
ABOUT = f"{__doc__}Layers: {', '.join(SIZES)}.\n"
main = Bench("bench.speed.attention", ABOUT, AttentionFlags, measure, table_of(COLUMNS, "layer | way")).run

if __name__ == "__main__":
    raise SystemExit(main())
