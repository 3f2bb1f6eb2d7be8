"""What each scheme, switch and pruning level costs in pictures: the tiny model on scenes it has never seen.

    python -m bench.quality.compressed
    python -m bench.quality.compressed --rows int8_static int4_group --count 20 pruned=runs/pruned.safetensors
    python -m bench.quality.compressed --rows "mlp 25 %, res 25 %" 2:4 --finetune-steps 100 --count 40

Every row makes the same pictures from the same noise (`eval.fill50k`) and is held against those of the full
precision and against the truth. Files are made by `python -m quantize` or `python -m quantize.prune` with the
row's flags, and of pruned ones others by its `finetune`; a file on the command line is a row of its own. What
is finished lies in the folder of the run and is not made again, unless weights, settings or flags have
changed. Seconds are those of the run that made the pictures, whatever else the machine did. With --check the
exit code is 1 where a bar is missed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.harness import MIB, Bench, Column, chosen, table_of
from bench.quality.held_out import COLOURS, FOLLOWED, ROWS, HeldOutFlags, file_stem
from bench.results import Measurement, Rows
from common.flags import flag
from common.shell import INTERRUPTED

# Rows by name: one or more commands with their flags, of which the last writes the file.
QUANTIZED, PRUNED = (
    {name: [tuple(shlex.split(one)) for one in commands] for name, commands in ROWS[kind].items()}
    for kind in ("quantized", "pruned")
)
FILE_ROWS = QUANTIZED | PRUNED
FULL = "full precision"
# Rows with a bar: median PSNR to full precision, and how many points a share may lose.
BARS = {"int8_static": (35.0, 1.0), "int8_dynamic": (35.0, 1.0), "int4_group, plan": (28.0, 3.0)}
SHARES = ("followed", "colours", "median IoU")  # in which points are lost
COLUMNS = (
    Column("MiB", "bytes", unit=MIB),
    Column("s a picture", "seconds"),
    Column("PSNR to full", "PSNR to full", "{:.1f} dB"),
    Column("its 5 %", "PSNR to full, low", "{:.1f} dB"),
    Column("SSIM to full", "SSIM to full", "{:.4f}"),
    Column("its 5 %", "SSIM to full, low", "{:.4f}"),
    Column("PSNR to truth", "PSNR to truth", "{:.2f} dB"),
    Column("SSIM to truth", "SSIM to truth", "{:.3f}"),
    FOLLOWED,
    COLOURS,
    Column("median IoU", "median IoU", "{:.4f}"),
)


@dataclass(frozen=True)
class CompressedFlags(HeldOutFlags):
    """The command line."""

    LOWEST: ClassVar[Mapping[str, int]] = {"seed": 0, "finetune_steps": 0}

    files: tuple[str, ...] = flag((), "further rows", "files", nargs="*", metavar="NAME=FILE")
    rows: tuple[str, ...] = flag(
        tuple(QUANTIZED), "which, none for the files alone (default: quantized)", nargs="*", metavar="NAME"
    )
    finetune_steps: int = flag(300, "of training pruned rows on, 0 for none", metavar="N")
    cache: int = flag(2000, "scenes to train on", metavar="N")
    run: Path = flag(Path("runs/compressed"), "of what is made", metavar="DIR")
    check: bool = flag(False, "end with code 1 where a bar is missed")


def measure(flags: CompressedFlags) -> Iterator[Measurement]:
    """Full precision, and held against it the rows that are asked for and the files of the command line."""
    from cldm.pipeline import Pipeline
    from ldm.config import create_meta_model

    asked = chosen(flags.rows, FILE_ROWS, "row") if flags.rows else []  # here none is none, not all
    named = [_named(text) for text in flags.files]
    full, seconds = flags.pictures(FULL, lambda: Pipeline.from_files(flags.config, dtype="fp32"))
    size = sum(tensor.nbytes for tensor in create_meta_model(flags.config).state_dict().values())
    yield from _costs(FULL, size, seconds)
    yield from flags.scores(FULL, full)
    made = (pair for name in asked for pair in made_files(flags, name))
    for name, path in (pair for pairs in (made, named) for pair in pairs):
        pictures, seconds = flags.pictures(path, lambda path=path: _load(flags.config, path))
        yield from _costs(name, path.stat().st_size, seconds)
        yield from flags.scores(name, pictures, full=full)


def _costs(name: str, size: int, seconds: float) -> Iterator[Measurement]:
    yield Measurement(name, "bytes", size, "B")
    yield Measurement(name, "seconds", seconds, "s")


def _load(config: Path, path: Path) -> object:
    from cldm.pipeline import Pipeline
    from quantize.files.read import read_content

    try:
        read_content(path)
    except ValueError:  # not quantized: pruned
        return Pipeline.from_files(config, path, dtype="fp32")
    return Pipeline.from_files(config, quantized=path)


def made_files(flags: CompressedFlags, name: str) -> Iterator[tuple[str, Path]]:
    """The rows of an entry of `FILE_ROWS` with their files, made unless they are there."""
    folder, config = flags.model_folder(), str(flags.config)
    out = folder / f"{file_stem(name)}.safetensors"
    for command, *words in FILE_ROWS[name]:
        make(out, [command, config, *(word.format(folder=folder) for word in words)])
    yield name, out
    if name in PRUNED and flags.finetune_steps:
        steps = str(flags.finetune_steps)
        mended = out.with_name(f"{out.stem}-{steps}.safetensors")
        words = ["--weights", str(out), "--steps", steps, "--cache", str(flags.cache)]
        make(mended, ["finetune", config, *words, "--run", str(mended.with_suffix(".run"))])
        yield f"{name}, {steps} steps", mended


def make(path: Path, argv: Sequence[str]) -> None:
    """Run `quantize` or a command of `quantize.prune` with its words, unless the file `path` is there."""
    import tools.compress.prune
    import tools.compress.quantize

    if path.is_file():
        return
    argv = [*argv, *([] if "--plan-out" in argv else ["--out", str(path)])]
    is_quantize = argv[0] == "quantize"
    code = tools.compress.quantize.main(argv[1:]) if is_quantize else tools.compress.prune.main(argv)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(f"{path} was not made: {' '.join(argv)} ended with code {code}")


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"{text!r} is not NAME=FILE, such as pruned=runs/pruned.safetensors")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    return name, Path(path)


def missed(rows: Rows) -> list[str]:
    """Which bars the rows miss, in words."""
    found = []
    for name, (bar, points) in BARS.items():
        if (row := rows.get(name)) is None:
            continue
        ratio = row["PSNR to full"].value
        if not ratio >= bar:
            found.append(f"{name}: PSNR to full precision is {ratio:.1f} dB, the bar is {bar:.0f} dB")
        for quantity in SHARES:
            lost = 100 * (rows[FULL][quantity].value - row[quantity].value)
            if not lost <= points + 1e-9:  # shares are whole pictures: 1.0 point may come out a hair above
                found.append(f"{name}: {quantity} loses {lost:.1f} points, the bar is {points:.0f}")
    return found


ABOUT = f"{__doc__}Rows: {'; '.join(FILE_ROWS)}.\n"
table = table_of(COLUMNS, "row")
main = Bench("bench.quality.compressed", ABOUT, CompressedFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
