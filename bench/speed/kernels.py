"""What one walk over memory saves: native kernels against plain torch, at the sizes of Stable Diffusion.

    python -m bench.speed.kernels
    python -m bench.speed.kernels --only gate --rounds 30

Activations are those of Stable Diffusion 1.5 at 512 pixels with guidance (two images a step). Every round
runs each way once, one after the other, so that whatever else the machine does meets both; medians are
printed as a table. Layers without the kernels are oneDNN's, which torch brings. GB/s counts the bytes that
each walk reads or writes, whether a cache held them or not. Freed memory is kept for the next call, as the
engine does: else every row would show the same page faults.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

GROUPS, EPS = 32, 1e-5
FLOAT = 4  # bytes
MS, GIGA = 1e-3, 1e9
IMAGES = [(2, 320, 64, 64), (2, 960, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8)]
TOKENS = [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280)]
WEIGHTS = [(320, 320, 3, 3), (1280, 1280, 3, 3), (10240, 1280)]
GROUP = 64
LAYERS = [(8192, 320, 320), (8192, 320, 2560), (8192, 1280, 320), (2048, 640, 5120), (512, 1280, 10240)]
CONVOLUTIONS = [(640, 64, 320), (640, 32, 640), (1280, 16, 1280), (1280, 8, 1280), (2560, 8, 1280)]
UPSAMPLINGS = [(640, 32), (1280, 16), (1280, 8)]


@dataclass(frozen=True)
class Case:
    """One kernel on one input.

    moved: bytes that it must read and write at least.
    """

    name: str
    shape: tuple[int, ...]
    run: Callable[[], Any]
    moved: int


def images() -> Iterator[Case]:
    """Kernels on activations of convolutions, channels last."""
    import torch

    from quantize.activations import QParams
    from quantize.cpu import activations as kernels

    seen = QParams(0.04, 100)
    for shape in IMAGES:
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        norm = (x, GROUPS, torch.randn(shape[1]), torch.randn(shape[1]), EPS)
        shift, numbers = torch.randn(shape[:2]), x.numel()
        walks = FLOAT * numbers, 2 * FLOAT * numbers + numbers
        yield Case("extremes", shape, lambda x=x: kernels.min_max(x), walks[0])
        yield Case("bytes", shape, lambda x=x: kernels.quantize(x, seen), FLOAT * numbers + numbers)
        yield Case("bytes, own range", shape, lambda x=x: kernels.quantize(x, None), walks[1])
        for name, options in {
            "group norm": {"silu": False, "qparams": seen},
            "group norm, SiLU": {"silu": True, "qparams": seen, "shift": shift},
            "group norm, SiLU, own range": {"silu": True, "qparams": None, "shift": shift},
        }.items():
            run = lambda norm=norm, options=options: kernels.group_norm_quantize(*norm, **options)  # noqa: E731
            yield Case(name, shape, run, walks[1])
        yield Case(
            "group norm, SiLU, floats", shape, lambda n=norm: kernels.group_norm_silu(*n), 3 * walks[0]
        )


def tokens() -> Iterator[Case]:
    """Kernels on activations of transformers."""
    import torch

    from quantize.activations import QParams
    from quantize.cpu import activations as kernels

    seen = QParams(0.04, 100)
    for shape in TOKENS:
        x, weight, bias = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])
        gate = torch.randn(*shape[:-1], 8 * shape[-1])  # values and gates, each four times as wide
        for own, qparams in (("", seen), (", own range", None)):
            yield Case(
                f"layer norm{own}",
                shape,
                lambda x=x, w=weight, b=bias, qparams=qparams: kernels.layer_norm_quantize(
                    x, w, b, EPS, qparams
                ),
                (2 - bool(qparams)) * FLOAT * x.numel() + x.numel(),
            )
            yield Case(
                f"gate{own}",
                tuple(gate.shape),
                lambda x=gate, qparams=qparams: kernels.geglu_quantize(x, qparams),
                (2 - bool(qparams)) * FLOAT * gate.numel() + gate.numel() // 2,
            )


def weights() -> Iterator[Case]:
    """Decoders of weights whose inputs stay float; they know nothing of their values."""
    import torch

    from quantize.cpu.dequantize import dequantize_int4, dequantize_int8

    for shape in WEIGHTS:
        rows, floats = shape[0], FLOAT * math.prod(shape)
        values, scale = torch.randint(-127, 128, shape, dtype=torch.int8), torch.rand(rows)
        run = lambda v=values, s=scale: dequantize_int8(v, s, v.shape)  # noqa: E731
        yield Case("int8 weights", shape, run, values.nbytes + floats)
        groups = math.ceil(math.prod(shape[1:]) / GROUP)
        packed = torch.randint(0, 256, (rows, groups, GROUP // 2), dtype=torch.uint8)
        steps = torch.rand(rows, groups).bfloat16()
        run = lambda p=packed, s=steps, shape=shape: dequantize_int4(p, s, shape)  # noqa: E731
        yield Case("int4 weights", shape, run, packed.nbytes + steps.nbytes + floats)


def layers() -> Iterator[Case]:
    """int8 Linear layers on bytes: positions, inputs, outputs."""
    import torch

    for rows, inputs, outputs in LAYERS:
        x, total = some_bytes(rows, inputs), torch.zeros(rows, outputs)
        pick = both_ways(torch.nn.Linear(inputs, outputs))
        moved = rows * inputs + inputs * outputs
        for name, run, written in (
            ("layer", lambda pick=pick, x=x: pick()(x), FLOAT * rows * outputs),
            ("layer, added", lambda pick=pick, x=x, t=total: pick()(x, onto=t), 2 * FLOAT * rows * outputs),
            ("layer and gate", lambda p=pick, x=x: p().gated(x, x.qparams), rows * outputs // 2),
        ):
            yield Case(name, (rows, inputs, outputs), run, moved + written)


def convolutions() -> Iterator[Case]:
    """int8 convolutions on bytes, 3x3, of two pictures: as they are, and behind upsampling by 2."""
    import torch

    from quantize.fused.convolutions import UpsampledConv2d

    sizes = [("convolution", None, 1, *size) for size in CONVOLUTIONS]
    sizes += [("convolution, upsampled", UpsampledConv2d, 4, *size, size[0]) for size in UPSAMPLINGS]
    for name, kind, times, inputs, size, outputs in sizes:
        conv, x = torch.nn.Conv2d(inputs, outputs, 3, padding=1), some_bytes(2, inputs, size, size)
        pick, written = both_ways(conv, kind), FLOAT * times * 2 * size**2 * outputs
        moved = x.values.nbytes + conv.weight.numel() + written
        yield Case(name, (2, inputs, size, size, outputs), lambda p=pick, x=x: p()(x), moved)


def some_bytes(*shape: int) -> Any:
    """Activations of `shape`, of pictures channels last."""
    import torch

    from quantize.activations import QParams, Quantized

    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    values = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=layout)
    return Quantized(values, QParams(0.04, 100))


def both_ways(layer: Any, kind: type | None = None) -> Callable[[], Any]:
    """Of `layer`, packed for the kernels and without them, what fits the moment; kind: the class of both."""
    from quantize import native
    from quantize.layers import quantize_layer

    made = []
    for library in (native.library(), None):  # weights are packed for what computes them
        made.append(quantize_layer(layer, "int8_static", [(-4.0, 4.0)], "max"))
        made[-1].__class__ = kind or type(made[-1])
        made[-1].bind("cpu")
        with mock.patch.object(native, "library", return_value=library):
            made[-1].prepare()
    return lambda: made[native.library() is None]


def seconds(run: Callable[[], Any]) -> float:
    """How long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case, rounds: int) -> tuple[float, float]:
    """Median seconds of plain torch and of the native kernel."""
    from quantize import native

    plain, ours = [], []
    for _ in range(rounds + 1):
        with mock.patch.object(native, "library", return_value=None):
            plain.append(seconds(case.run))
        ours.append(seconds(case.run))
    return statistics.median(plain[1:]), statistics.median(ours[1:])  # the first has met the sizes


def line(case: Case, plain: float, ours: float) -> str:
    """A row of the table."""
    shape = " x ".join(map(str, case.shape))
    return (
        f"| {case.name} | {shape} | {plain / MS:.2f} | {ours / MS:.2f} | {plain / ours:.1f} x "
        f"| {case.moved / ours / GIGA:.1f} |"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT (default: all)")
    add("--rounds", type=int, default=11, help="measurements of each way (default: %(default)s)")
    add("--threads", type=int, help="of the CPU (default: as many as torch takes)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 where the command line or the machine does not allow one."""
    args = parse_args(argv)
    import torch

    from common.memory import keep_freed_memory
    from quantize import native

    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        print(f"--rounds {args.rounds} --threads {args.threads}: 1 or more", file=sys.stderr)
        return 2
    if native.library() is None:
        print("there are no native kernels here to measure", file=sys.stderr)
        return 2
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"threads: {torch.get_num_threads()}, rounds: {args.rounds}\n")
    print("| kernel | input | plain torch, ms | ours, ms | | GB/s |\n|---|---|---|---|---|---|")
    for cases in (images, tokens, weights, layers, convolutions):
        for case in cases():
            if args.only in case.name:
                print(line(case, *measure(case, args.rounds)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
