"""How fast and how exact is the attention of one layer? torch's, in float32 and bfloat16, beside ours.

    python -m bench.speed.attention

Sizes are those of Stable Diffusion 1.5 at 512 pixels with guidance (batch 2). Rounds are interleaved, so that
whatever else the machine does meets all alike; the table shows medians. Inputs are Gaussian: times do not
depend on them as long as logits stay below about 40, errors do. The error is that of 256 rows to float64,
relative to their length, for logits that spread by 1 (flat rows) and by 5 (a few tokens share a row).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.cpu.attention import attend_bf16, attend_int8

SEED = 0
ROWS = 256  # whose error is measured
SPREADS = (1.0, 5.0)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """Of one call: batch, heads, queries, tokens, width of a head."""

    b: int
    heads: int
    n: int
    m: int
    d: int


@dataclass(frozen=True)
class Row:
    """What came out for one size and one way: milliseconds of each round, errors by spread of the logits."""

    size: str
    way: str
    milliseconds: list[float]
    errors: list[float]


def torch_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused attention."""
    return F.scaled_dot_product_attention(q, k, v)


def torch_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in bfloat16, from and to float32."""
    return F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()


def inputs(size: Size, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian q, k and v as a layer hands them on: views of [b, n, heads * d]."""
    noise = torch.Generator().manual_seed(SEED)
    drawn = (torch.randn(size.b, n, size.heads, size.d, generator=noise) for n in (size.n, size.m, size.m))
    q, k, v = (t.transpose(1, 2) for t in drawn)
    return q * spread, k, v


def error(attend: Attend, size: Size, spread: float) -> float:
    """Length of what differs from float64 over the length of the output, on some rows of the first head."""
    q, k, v = (t[:1, :1] for t in inputs(size, spread))
    q = q[:, :, :ROWS]
    logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(size.d)
    expected = torch.softmax(logits, dim=-1) @ v.double()
    return ((attend(q, k, v) - expected).norm() / expected.norm()).item()


def measure(name: str, size: Size, rounds: int) -> list[Row]:
    """A row for each way; its first call is no round."""
    q, k, v = inputs(size, 1.0)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for attend in WAYS.values():
        attend(q, k, v)
    for _ in range(rounds):
        for way, attend in WAYS.items():
            start = time.perf_counter()
            attend(q, k, v)
            times[way].append(1e3 * (time.perf_counter() - start))
    errors = {way: [error(attend, size, spread) for spread in SPREADS] for way, attend in WAYS.items()}
    return [Row(name, way, times[way], errors[way]) for way in WAYS]


def table(rows: list[Row]) -> str:
    """Medians, the gain over torch's float32, and errors, as markdown."""
    spreads = " | ".join(f"error, logits spread by {spread:g}" for spread in SPREADS)
    lines = [
        f"| layer | way | ms | fastest to slowest | gain | {spreads} |",
        "|---" * (5 + len(SPREADS)) + "|",
    ]
    base = {row.size: statistics.median(row.milliseconds) for row in rows if row.way == next(iter(WAYS))}
    for row in rows:
        median = statistics.median(row.milliseconds)
        spread = f"{min(row.milliseconds):.1f} to {max(row.milliseconds):.1f}"
        errors = " | ".join(f"{100 * one:.2f} %" for one in row.errors)
        lines.append(
            f"| {row.size} | {row.way} | {median:.1f} | {spread} | {base[row.size] / median:.2f} | {errors} |"
        )
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="NAME", help="of %(choices)s"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="timed calls of each way (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write all rounds and errors there too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 with a sentence for a number of rounds that times nothing."""
    args = parse_args(argv)
    if args.rounds < 1:
        sys.stderr.write(f"rounds={args.rounds}: time at least 1\n")
        return 1
    rows = [row for name in args.sizes for row in measure(name, SIZES[name], args.rounds)]
    print(f"{torch.get_num_threads()} threads, {args.rounds} rounds\n\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


WAYS: dict[str, Attend] = {
    "torch fp32": torch_fp32,
    "torch bf16": torch_bf16,
    "attend_int8": attend_int8,
    "attend_bf16": attend_bf16,
}
SIZES = {
    "self-64x64": Size(2, 8, 4096, 4096, 40),
    "self-32x32": Size(2, 8, 1024, 1024, 80),
    "self-16x16": Size(2, 8, 256, 256, 160),
    "self-8x8": Size(2, 8, 64, 64, 160),
    "text-64x64": Size(2, 8, 4096, 77, 40),
    "text-32x32": Size(2, 8, 1024, 77, 80),
    "sd21-64x64": Size(2, 5, 4096, 4096, 64),
}

if __name__ == "__main__":
    raise SystemExit(main())
