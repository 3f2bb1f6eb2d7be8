"""What one pass over memory saves: native kernels against plain torch, at the sizes of Stable Diffusion.

    python -m bench.speed.kernels
    python -m bench.speed.kernels --only gate --rounds 30
    python -m bench.speed.kernels --only attention --rounds 7

Activations are those of Stable Diffusion 1.5 at 512 pixels with guidance (two images a step). Every round
runs each way once, one after the other, so that whatever else the machine does meets both; medians are
printed as a table. Layers without the kernels are oneDNN's, which torch brings. GB/s counts the bytes that
each pass reads or writes, whether a cache held them or not. Freed memory is kept for the next call, as the
engine does: else every row would show the same page faults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from bench.harness import GB, MS, ROUNDS, Bench, BenchFlags, Column, table_of
from bench.processes import Run, interleaved
from bench.results import Measurement
from common.flags import flag
from common.memory import keep_freed_memory
from quantize import native
from quantize.activations import QParams, Quantized
from quantize.cpu import activations as kernels
from quantize.cpu.attention import attend_bf16, attend_int8
from quantize.cpu.dequantize import dequantize_int4, dequantize_int8

GROUPS, EPS = 32, 1e-5  # of Stable Diffusion's norms
FLOAT = 4  # bytes
SEEN = QParams(0.04, 100)  # a range that is known beforehand
IMAGES = [(2, 320, 64, 64), (2, 960, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8)]
TOKENS = [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280)]
WEIGHTS = [(320, 320, 3, 3), (1280, 1280, 3, 3), (10240, 1280)]
GROUP = 64  # weights that share a step in int4
LAYERS = [(8192, 320, 320), (8192, 320, 2560), (8192, 1280, 320), (2048, 640, 5120), (512, 1280, 10240)]
CONVOLUTIONS = [(640, 64, 320), (640, 32, 640), (1280, 16, 1280), (1280, 8, 1280), (2560, 8, 1280)]
UPSAMPLINGS = [(640, 32), (1280, 16), (1280, 8)]
# Batch, heads, queries, tokens, width of a head: positions to themselves, then to 77 tokens of text; SD 2.1.
ATTENTIONS = [(2, 8, side**2, side**2, width) for side, width in ((64, 40), (32, 80), (16, 160), (8, 160))]
ATTENTIONS += [(2, 8, 4096, 77, 40), (2, 8, 1024, 77, 80), (2, 5, 4096, 4096, 64)]
COLUMNS = (
    Column("plain torch, ms", "plain torch", unit=MS),
    Column("ours, ms", "ours", unit=MS),
    Column("", "gain", "{:.1f} x"),
    Column("GB/s", "speed", "{:.1f}", GB),
)


@dataclass(frozen=True)
class KernelFlags(BenchFlags):
    """The command line."""

    only: str = flag("", "kernels whose name holds TEXT (default: all)", metavar="TEXT")
    rounds: int = flag(11, ROUNDS)  # odd: the median is one of them


@dataclass(frozen=True)
class KernelCase:
    """One kernel on one input; moved: bytes that it must read and write at least.

    peer: what plain torch does, None for the same without the kernels.
    """

    name: str
    shape: tuple[int, ...]
    run: Run
    moved: int
    peer: Run | None = None


def images() -> Iterator[KernelCase]:
    """Kernels on activations of convolutions, channels last."""
    for shape in IMAGES:
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)  # as the engine keeps images
        norm = (x, GROUPS, torch.randn(shape[1]), torch.randn(shape[1]), EPS)
        shift, numbers = torch.randn(shape[:2]), x.numel()
        once, twice = (passes * FLOAT * numbers + numbers for passes in (1, 2))
        yield KernelCase("bytes", shape, partial(kernels.quantize, x, SEEN), once)
        yield KernelCase("bytes, own range", shape, partial(kernels.quantize, x, None), twice)
        for name, options in {
            "group norm": {"silu": False, "qparams": SEEN},
            "group norm, SiLU": {"silu": True, "qparams": SEEN, "shift": shift},
            "group norm, SiLU, own range": {"silu": True, "qparams": None, "shift": shift},
        }.items():
            yield KernelCase(name, shape, partial(kernels.group_norm_quantize, *norm, **options), twice)
        floats = partial(kernels.group_norm_silu, *norm)
        yield KernelCase("group norm, SiLU, floats", shape, floats, 3 * FLOAT * numbers)


def tokens() -> Iterator[KernelCase]:
    """Kernels on activations of transformers."""
    for shape in TOKENS:
        x, weight, bias = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])
        gate = torch.randn(*shape[:-1], 8 * shape[-1])  # values and gates, each four times as wide
        for own, qparams, passes in (("", SEEN, 1), (", own range", None, 2)):
            norm = partial(kernels.layer_norm_quantize, x, weight, bias, EPS, qparams)
            yield KernelCase(f"layer norm{own}", shape, norm, passes * FLOAT * x.numel() + x.numel())
            run, moved = partial(kernels.geglu_quantize, gate, qparams), passes * FLOAT * gate.numel()
            yield KernelCase(f"gate{own}", tuple(gate.shape), run, moved + gate.numel() // 2)


def weights() -> Iterator[KernelCase]:
    """Decoders of weights whose inputs stay float; they know nothing of their values."""
    for shape in WEIGHTS:
        rows, floats = shape[0], FLOAT * math.prod(shape)
        values, scale = torch.randint(-127, 128, shape, dtype=torch.int8), torch.rand(rows)
        run = partial(dequantize_int8, values, scale, values.shape)
        yield KernelCase("int8 weights", shape, run, values.nbytes + floats)
        groups = math.ceil(math.prod(shape[1:]) / GROUP)
        packed = torch.randint(0, 256, (rows, groups, GROUP // 2), dtype=torch.uint8)
        steps = torch.rand(rows, groups).bfloat16()
        run = partial(dequantize_int4, packed, steps, shape)
        yield KernelCase("int4 weights", shape, run, packed.nbytes + steps.nbytes + floats)


def layers() -> Iterator[KernelCase]:
    """int8 Linear layers on bytes: positions, inputs, outputs."""
    for rows, inputs, outputs in LAYERS:
        x, total = some_bytes(rows, inputs), torch.zeros(rows, outputs)
        pick = both_ways(torch.nn.Linear(inputs, outputs))
        moved = rows * inputs + inputs * outputs
        for name, run, written in (
            ("layer", lambda pick=pick, x=x: pick()(x), FLOAT * rows * outputs),
            ("layer, added", lambda pick=pick, x=x, t=total: pick()(x, onto=t), 2 * FLOAT * rows * outputs),
            ("layer and gate", lambda p=pick, x=x: p().gated(x, x.qparams), rows * outputs // 2),
        ):
            yield KernelCase(name, (rows, inputs, outputs), run, moved + written)


def convolutions() -> Iterator[KernelCase]:
    """int8 convolutions on bytes, 3x3, of two pictures: as they are, and behind upsampling by 2."""
    from quantize.fused.convolutions import UpsampledConv2d

    sizes = [("convolution", None, 1, *size) for size in CONVOLUTIONS]
    sizes += [("convolution, upsampled", UpsampledConv2d, 4, *size, size[0]) for size in UPSAMPLINGS]
    for name, kind, times, inputs, size, outputs in sizes:
        conv, x = torch.nn.Conv2d(inputs, outputs, 3, padding=1), some_bytes(2, inputs, size, size)
        pick, written = both_ways(conv, kind), FLOAT * times * 2 * size**2 * outputs
        moved = x.values.nbytes + conv.weight.numel() + written
        yield KernelCase(name, (2, inputs, size, size, outputs), lambda p=pick, x=x: p()(x), moved)


def attentions() -> Iterator[KernelCase]:
    """softmax(q k^T) v of one layer; plain torch's is in float32."""
    for shape in ATTENTIONS:
        batch, heads, queries, keys, width = shape
        drawn = (torch.randn(batch, n, heads, width) for n in (queries, keys, keys))
        q, k, v = (t.transpose(1, 2) for t in drawn)  # views, as a layer hands them on
        moved = 2 * q.nbytes + k.nbytes + v.nbytes
        for name, attend in (("attention, int8", attend_int8), ("attention, bf16", attend_bf16)):
            plain_torch = partial(F.scaled_dot_product_attention, q, k, v)
            yield KernelCase(name, shape, partial(attend, q, k, v), moved, plain_torch)


def some_bytes(*shape: int) -> Any:
    """Activations of `shape`, of pictures channels last."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    values = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=layout)
    return Quantized(values, SEEN)


def both_ways(layer: Any, kind: type | None = None) -> Callable[[], Any]:
    """Of `layer`, packed for the kernels and without them, what fits the moment; kind: the class of both."""
    from quantize.layers import quantize_layer

    made = []
    for library in (native.library(), None):  # weights are packed for what computes them
        made.append(quantize_layer(layer, "int8_static", [(-4.0, 4.0)], "max"))
        made[-1].__class__ = kind or type(made[-1])
        made[-1].bind("cpu")
        with mock.patch.object(native, "library", return_value=library):
            made[-1].prepare()
    return lambda: made[native.library() is None]


def plain(run: Run) -> Run:
    """The same without the kernels."""

    def without() -> Any:
        # By hand: mock.patch takes as long as a tenth of the fastest kernels.
        known, native.library = native.library, lambda: None
        try:
            return run()
        finally:
            native.library = known

    return without


def measure(flags: KernelFlags) -> Iterator[Measurement]:
    """For each kernel and input: seconds of plain torch and of ours, their ratio, bytes moved a second."""
    if native.library() is None:
        raise ValueError("there are no native kernels here to measure")
    keep_freed_memory()  # as the engine does
    for cases in (images, tokens, weights, layers, convolutions, attentions):
        for case in cases():
            if flags.only in case.name:
                yield from rows_of(case, flags.rounds)


def rows_of(case: KernelCase, rounds: int) -> Iterator[Measurement]:
    """What a kernel takes, called `NAME | SHAPE`: a cell of the table each."""
    subject = f"{case.name} | {' x '.join(map(str, case.shape))}"
    ways = {"plain torch": case.peer or plain(case.run), "ours": case.run}
    costs = interleaved(ways, rounds)
    theirs, ours = (
        Measurement.of(subject, way, "s", [cost.wall for cost in taken]) for way, taken in costs.items()
    )
    yield from (theirs, ours)
    yield Measurement(subject, "gain", theirs.value / ours.value, "times")
    yield Measurement(subject, "speed", case.moved / ours.value, "B/s")


table = table_of(COLUMNS, "kernel | input")
main = Bench("bench.speed.kernels", __doc__, KernelFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
