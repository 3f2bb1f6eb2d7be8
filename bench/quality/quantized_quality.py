"""What each scheme, switch and pruning level costs in pictures: the tiny model on scenes it has never seen.

    python -m bench.quality.quantized_quality
    python -m bench.quality.quantized_quality --rows int8_static int4_group --count 20 \
        pruned=runs/pruned.safetensors

Every row makes the same pictures from the same noise (`eval.fill50k`) and is held against those of the full
precision and against the truth. Files are made by `python -m quantize` with the row's flags; a file on the
command line is a row of its own, quantized or not. What is finished lies in the folder of the run and is not
made again, unless weights, settings or flags have changed. Seconds are those of the run that made the
pictures, whatever else the machine did. With --check the exit code is 1 where a bar is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import MIB, Bench, chosen
from bench.quality.held_out import HeldOutFlags, file_stem, quality_table, share
from bench.results import Measurement, Rows
from common.flags import flag
from common.shell import INTERRUPTED

STATIC = ("--scheme", "int8_static", "--calibrate", "test_imgs")
INT4 = ("--scheme", "int4_group")
PLANNED = (*INT4, "--calibrate", "test_imgs", "--sensitivity", "{folder}/int4-noise.json")
# Rows by name: the flags of one or more commands, of which the last writes the file.
SCHEMES = {
    "int8_weight": (("--scheme", "int8_weight"),),
    "int8_dynamic": (("--scheme", "int8_dynamic"),),
    "int8_static": (STATIC,),
    "int8_static, decoder": ((*STATIC, "--decoder"),),
    "int8_static, compact": ((*STATIC, "--compact"),),
    "int4_group": (INT4,),
    "int4_group, plan": (
        (*PLANNED, "--budget-db", "26", "--plan-out", "{folder}/int4-plan.json"),
        ("--plan", "{folder}/int4-plan.json"),
    ),
}
SWITCHES = {
    "int8_static, clip max": ((*STATIC, "--clip", "max"),),
    "int8_static, balance": ((*STATIC, "--balance"),),
    "int4_group, clip max": ((*INT4, "--clip", "max"),),
    "int4_group, balance": ((*INT4, "--balance", "--calibrate", "test_imgs"),),
}
SCHEME_ROWS: Mapping[str, Sequence[Sequence[str]]] = {**SCHEMES, **SWITCHES}
FULL = "full precision"
# Rows with a bar: median PSNR to full precision, and how many points a share may lose.
BARS = {"int8_static": (35.0, 1.0), "int8_dynamic": (35.0, 1.0), "int4_group, plan": (28.0, 3.0)}
SHARES = ("followed", "colours", "median IoU")
COLUMNS = (
    ("MiB", "bytes", lambda value: f"{value / MIB:.2f}"),
    ("s a picture", "seconds", "{:.2f}".format),
    ("PSNR to full", "PSNR to full", "{:.1f} dB".format),
    ("its 5 %", "PSNR to full, low", "{:.1f} dB".format),
    ("SSIM to full", "SSIM to full", "{:.4f}".format),
    ("its 5 %", "SSIM to full, low", "{:.4f}".format),
    ("PSNR to truth", "PSNR to truth", "{:.2f} dB".format),
    ("SSIM to truth", "SSIM to truth", "{:.3f}".format),
    ("followed", "followed", share),
    ("colours", "colours", share),
    ("median IoU", "median IoU", "{:.4f}".format),
)


@dataclass(frozen=True)
class QuantizedQualityFlags(HeldOutFlags):
    """The command line."""

    files: tuple[str, ...] = flag((), "further rows", "files", nargs="*", metavar="NAME=FILE")
    rows: tuple[str, ...] = flag(
        tuple(SCHEME_ROWS), "which, none for the files alone (default: all)", nargs="*", metavar="NAME"
    )
    run: Path = flag(Path("runs/quantized"), "of what is made", metavar="DIR")
    check: bool = flag(False, "end with code 1 where a bar is missed")


def measure(flags: QuantizedQualityFlags) -> Iterator[Measurement]:
    """Full precision, the rows that are asked for, and the files of the command line."""
    asked = chosen(flags.rows, SCHEME_ROWS, "row") if flags.rows else []
    named = [_named(text) for text in flags.files]
    made = ((name, quantized(flags, name)) for name in asked)
    yield from file_rows(flags, (pair for pairs in (made, named) for pair in pairs))


def file_rows(flags: HeldOutFlags, files: Iterable[tuple[str, Path]]) -> Iterator[Measurement]:
    """Full precision and each named file, quantized or pruned or both, held against it."""
    from cldm.pipeline import Pipeline
    from ldm.config import create_meta_model

    full, seconds = flags.pictures(FULL, lambda: Pipeline.from_files(flags.config, dtype="fp32"))
    size = sum(tensor.nbytes for tensor in create_meta_model(flags.config).state_dict().values())
    yield from _costs(FULL, size, seconds)
    yield from flags.scores(FULL, full)
    for name, path in files:
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


def quantized(flags: HeldOutFlags, name: str) -> Path:
    """The file of a row of `SCHEME_ROWS`, made unless it is there."""
    import tools.compress.quantize

    folder = flags.model_folder()
    out = folder / f"{file_stem(name)}.safetensors"
    for words in SCHEME_ROWS[name] if not out.is_file() else ():
        words = [word.format(folder=folder) for word in words]
        target = [] if "--plan-out" in words else ["--out", str(out)]
        code = tools.compress.quantize.main([str(flags.config), *words, *target])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise ValueError(f"python -m quantize {' '.join(words)} ended with code {code}")
    return out


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"{text!r} is not NAME=FILE, such as pruned=runs/pruned.safetensors")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    return name, Path(path)


def table(rows: Rows, _: HeldOutFlags) -> str:
    """One line a row."""
    return quality_table(rows, COLUMNS)


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


ABOUT = f"{__doc__}Rows: {'; '.join(SCHEME_ROWS)}.\n"
main = Bench("bench.quality.quantized_quality", ABOUT, QuantizedQualityFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
