"""What pruning costs in pictures, before and after training on: the tiny model on scenes it has never seen.

    python -m bench.quality.pruned_quality
    python -m bench.quality.pruned_quality --levels "mlp 25 %, res 25 %" 2:4 --finetune-steps 100 --count 40

Each level is a file of `python -m quantize.prune` with the flags listed here, and another one that `finetune`
made of it. The table is that of `bench.quality.quantized_quality`. What is finished is not made again; it
lies in the folder of the run, in one of yaml and weights. Exit codes: 0; 2 with one sentence; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.quality import quantized_quality
from bench.quality.quantized_rows import Task

TAYLOR = ("--by", "taylor", "--calibrate", "test_imgs")
# The tiny model's attention has two heads, and its norms have four groups: finer shares cannot be asked for.
STRUCTURED = {
    "mlp 12.5 %": ("--mlp", "0.125"),
    "mlp 25 %": ("--mlp", "0.25"),
    "mlp 25 %, by Taylor": ("--mlp", "0.25", *TAYLOR),
    "mlp 25 %, res 25 %": ("--mlp", "0.25", "--res", "0.25"),
    "mlp 25 %, res 25 %, by Taylor": ("--mlp", "0.25", "--res", "0.25", *TAYLOR),
    "mlp 50 %, heads 50 %": ("--mlp", "0.5", "--heads", "0.5"),
    "mlp 50 %, heads 50 %, res 50 %": ("--mlp", "0.5", "--heads", "0.5", "--res", "0.5"),
}
LEVELS: Mapping[str, Sequence[str]] = {
    **{name: ("structured", *flags) for name, flags in STRUCTURED.items()},
    "magnitude 30 %": ("magnitude", "--share", "0.3"),
    "magnitude 50 %": ("magnitude", "--share", "0.5"),
    "magnitude 50 %, global": ("magnitude", "--share", "0.5", "--scope", "global"),
    "2:4": ("2:4",),
}


def files(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Rows by name and the file of each, made where it is not there."""
    folder = args.run / Task(args.config, args.run, count=0, seed=0, size=0).key()
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.levels:
        command, *flags = LEVELS[name]
        pruned = folder / f"{_stem(name)}.safetensors"
        _make(pruned, [command, str(args.config), *flags])
        yield name, pruned
        if args.finetune_steps:
            steps = str(args.finetune_steps)
            mended = pruned.with_name(f"{pruned.stem}-{steps}.safetensors")
            flags = ["--weights", str(pruned), "--steps", steps, "--cache", str(args.cache)]
            _make(mended, ["finetune", str(args.config), *flags, "--run", str(mended.with_suffix(".run"))])
            yield f"{name}, {steps} steps", mended


def _make(path: Path, argv: Sequence[str]) -> None:
    import tools.compress.prune as prune

    if not path.is_file() and (code := prune.main([*argv, "--out", str(path)])):
        raise ChildProcessError(f"{path} was not made: python -m quantize.prune {argv[0]} ended with {code}")


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.pruned_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path("models/tiny.yaml"), help="model (default: %(default)s)")
    add(
        "--levels",
        nargs="+",
        default=list(LEVELS),
        metavar="NAME",
        help=f"of {'; '.join(LEVELS)}".replace("%", "%%"),
    )
    add("--finetune-steps", type=int, default=300, metavar="N", help="0 for none (default: %(default)s)")
    add("--cache", type=int, default=2000, metavar="N", help="scenes to train on (default: %(default)s)")
    add("--run", type=Path, default=Path("runs/pruned"), metavar="DIR", help="default: %(default)s")
    add("--count", type=int, default=100, help="held-out scenes (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as above."""
    args = parse_args(argv)
    try:
        if unknown := [name for name in args.levels if name not in LEVELS]:
            raise ValueError(f"unknown level {unknown[0]!r}: use some of {'; '.join(LEVELS)}")
        named = [f"{name}={path}" for name, path in files(args)]
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    flags = ["--config", str(args.config), "--run", str(args.run), "--count", str(args.count), "--rows"]
    return quantized_quality.main([*named, *flags])


if __name__ == "__main__":
    raise SystemExit(main())
