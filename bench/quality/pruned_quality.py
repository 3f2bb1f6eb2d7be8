"""What pruning costs in pictures, before and after training on: the tiny model on scenes it has never seen.

    python -m bench.quality.pruned_quality
    python -m bench.quality.pruned_quality --levels "mlp 25 %, res 25 %" 2:4 --finetune-steps 100 --count 40

Each level is a file of `python -m quantize.prune`, and another one that `finetune` made of it. The table is
that of `bench.quality.quantized_quality`. What is finished lies in the folder of the run and is not made
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.harness import Bench, chosen
from bench.quality.held_out import HeldOutFlags, file_stem
from bench.quality.quantized_quality import file_rows, table
from bench.results import Measurement
from common.flags import flag
from common.shell import INTERRUPTED

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


@dataclass(frozen=True)
class PrunedQualityFlags(HeldOutFlags):
    """The command line."""

    LOWEST: ClassVar[Mapping[str, int]] = {"seed": 0, "finetune_steps": 0}

    only: tuple[str, ...] = flag((), "levels (default: all)", "--only", "--levels", metavar="NAME")
    finetune_steps: int = flag(300, "0 for none", metavar="N")
    cache: int = flag(2000, "scenes to train on", metavar="N")
    run: Path = flag(Path("runs/pruned"), "of what is made", metavar="DIR")
    count: int = flag(100, "held-out scenes")


def pruned_files(flags: PrunedQualityFlags) -> Iterator[tuple[str, Path]]:
    """Rows by name and the file of each, made where it is not there."""
    folder, config = flags.model_folder(), str(flags.config)
    for name in chosen(flags.only, LEVELS, "level"):
        command, *words = LEVELS[name]
        pruned = folder / f"{file_stem(name)}.safetensors"
        _make(pruned, [command, config, *words])
        yield name, pruned
        if flags.finetune_steps:
            steps = str(flags.finetune_steps)
            mended = pruned.with_name(f"{pruned.stem}-{steps}.safetensors")
            words = ["--weights", str(pruned), "--steps", steps, "--cache", str(flags.cache)]
            _make(mended, ["finetune", config, *words, "--run", str(mended.with_suffix(".run"))])
            yield f"{name}, {steps} steps", mended


def _make(path: Path, argv: Sequence[str]) -> None:
    import tools.compress.prune

    code = 0 if path.is_file() else tools.compress.prune.main([*argv, "--out", str(path)])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(f"{path} was not made: python -m quantize.prune {argv[0]} ended with {code}")


def measure(flags: PrunedQualityFlags) -> Iterator[Measurement]:
    """Full precision and each level."""
    chosen(flags.only, LEVELS, "level")  # before anything is computed
    return file_rows(flags, pruned_files(flags))


ABOUT = f"{__doc__}Levels: {'; '.join(LEVELS)}.\n"
main = Bench("bench.quality.pruned_quality", ABOUT, PrunedQualityFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
