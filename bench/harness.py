"""What all benches share: the command line, the rows that are kept, the table that is printed.

A bench is flags, what measures, and what makes a table of the rows:

    table = table_of([Column("step, s", "wall", SPREAD), Column("faster", "wall", ratio="faster")], "branch")
    main = Bench("bench.speed.lite", __doc__, LiteFlags, measure, table).run
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.origin import device_words, model_files, origin_of
from bench.results import ROOT, Measurement, ResultsFile, Rows, by_subject
from common.flags import add_flags, flag, read_flags
from common.shell import DONE, NOT_MET, Parser, run_command, say

ROUNDS = "timed runs of each"
SD15, TINY = ROOT / "models/cldm_v15.yaml", ROOT / "models/tiny.yaml"
FOLDER = ROOT / "outputs/bench"  # of random weights and what is made of them
GB, MB = 1e9, 1e6
GIB, MIB = 2**30, 2**20
MS, PERCENT = 1e-3, 1e-2
UNITS = {"share": "{:.1%}", "dB": "{:.1f} dB", "s": "{:.2f} s", "/255": "{:.1f}"}  # how `shown` writes them
SPREAD = "{:.2f} ({low:.2f}..{high:.2f})"
PIXELS = 64  # sides are multiples: latents are an eighth, and the U-Net halves them three times


@dataclass(frozen=True)
class BenchFlags:
    """Those that all have; a bench adds its own, or other defaults.

    ValueError for whole numbers below `LOWEST` (else 1) and for sides that no model can have.
    """

    LOWEST: ClassVar[Mapping[str, int]] = {}
    SHARED: ClassVar[Sequence[str]] = ()  # which of the flags rows must share to be one table

    threads: int | None = flag(None, "of the CPU (default: as many as torch takes)")
    results: Path | None = flag(None, "for the rows, JSON lines; earlier ones are shown too", metavar="FILE")

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            value, lowest = getattr(self, name), self.LOWEST.get(name, 1)
            if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
                raise ValueError(f"{name}={value}: give {lowest} or more")
            if name == "size" and value % PIXELS:
                raise ValueError(f"size={value}: give pixels in steps of {PIXELS}")

    def setting(self) -> dict[str, Any]:
        """What rows must share to be one table, as JSON has it."""
        values = {name: getattr(self, name) for name in self.SHARED}
        return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}

    def sources(self) -> list[Path]:
        """The files that the numbers depend on: here the yaml, where there is one, and its weights."""
        config, weights = getattr(self, "config", None), getattr(self, "weights", ())
        return model_files(config, weights if isinstance(weights, tuple) else ()) if config else []


@dataclass(frozen=True)
class StepFlags(BenchFlags):
    """Of benches that take a step of a model's variants in turns."""

    SHARED: ClassVar[Sequence[str]] = ("config", "size", "batch")

    config: Path = flag(SD15, "yaml of the model")
    size: int = flag(512, "side of the picture, pixels", "--resolution")
    batch: int = flag(1, "pictures a step")
    rounds: int = flag(3, ROUNDS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N")


@dataclass(frozen=True)
class Bench:
    """One question about the program.

    name: of the module, for `python -m`. measure: from the flags, row by row. table: what is printed, from
    the rows and the flags. missed: sentences about bars that are not met; the exit code is 1 then, unless
    there is a flag --check that was not given. adds_up: rounds of several runs in one file make one table.
    """

    name: str
    about: str | None
    flags: type[BenchFlags]
    measure: Callable[[Any], Iterable[Measurement]]
    table: Callable[[Rows, Any], str]
    missed: Callable[[Rows], list[str]] = lambda rows: []
    adds_up: bool = False

    def run(self, argv: list[str] | None = None) -> int:
        """Measure, print the table, and return the exit code: 0, 1 for a missed bar, 2 for a mistake, 130."""
        parser = Parser(f"python -m {self.name}", self.about)
        add_flags(parser, self.flags)
        args = parser.parse_args(argv)
        words = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", "-m", self.name, *words])
        return run_command(
            lambda: self._run(read_flags(self.flags, args), command),
            stopped="stopped; what is finished stays where the command keeps it",
        )

    def _run(self, flags: BenchFlags, command: str) -> int:
        import torch

        from ldm.util import pick_device

        if flags.threads:
            torch.set_num_threads(flags.threads)
        device = str(pick_device(getattr(flags, "device", "cpu")))
        setting = flags.setting()
        origin = origin_of(self.name, setting, command, device, flags.sources())
        results, found = ResultsFile(flags.results, origin), []
        for one in self.measure(flags):
            found.append(one)
            results.keep(found, add=self.adds_up)
        rows = by_subject([*results.earlier(found, add=self.adds_up), *found])
        title = ", ".join(
            [device_words(origin["device"]), *(f"{name} {v}" for name, v in setting.items() if v)]
        )
        sys.stdout.write(f"{title}\n\n{self.table(rows, flags)}\n")
        failures = self.missed(rows)
        for failure in failures:
            say(f"not good enough: {failure}")
        return NOT_MET if failures and getattr(flags, "check", True) else DONE


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line a row."""
    first, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *lines])


@dataclass(frozen=True)
class Column:
    """A quantity as a table shows it.

    text: for `str.format`, of the value, `low` and `high` in units of `unit`, and `n`; or a function of the
    measurement. ratio: that of the value to the first row which has the quantity, or its inverse ("faster").
    """

    head: str
    quantity: str
    text: str | Callable[[Measurement], str] = "{:.2f}"
    unit: float | None = None
    ratio: Literal["of first", "faster"] | None = None

    def cell(self, row: Mapping[str, Measurement], rows: Rows) -> str:
        """What is shown of `row`, one of `rows`: a dash where it has no such quantity."""
        if self.quantity not in row:
            return "-"
        one = row[self.quantity]
        if callable(self.text):
            return self.text(one)
        if self.ratio:
            first = next(other[self.quantity] for other in rows.values() if self.quantity in other)
            share = one.value / first.value
            return self.text.format(share) if self.ratio == "of first" else f"{1 / share:.2f} x"
        value, low, high = (
            number / self.unit if self.unit and number is not None else number
            for number in (one.value, one.low, one.high)
        )
        return self.text.format(value, low=low, high=high, n=one.n)


def table_of(columns: Sequence[Column], first: str = "") -> Callable[..., str]:
    """What makes a table of rows; first: the head above their names."""

    def table(rows: Rows, _: object = None) -> str:
        head, *lines = cells_of(rows, columns, first)
        return markdown(head, lines)

    return table


def cells_of(rows: Rows, columns: Sequence[Column], first: str = "") -> list[list[str]]:
    """The head and a line a subject; names of two parts, as in `kernel | input`, take two cells."""
    lines = [[name, *(one.cell(row, rows) for one in columns)] for name, row in rows.items()]
    head = [first, *(column.head for column in columns)]
    return [[*name.split(" | "), *line] for name, *line in (head, *lines)]


def shown(one: Measurement) -> str:
    """A value as its unit is read, with its interval where there is one."""
    text = UNITS.get(one.unit, "{:.3f}").format
    if one.low is None or one.high is None:
        return text(one.value)
    return f"{text(one.value)} [{text(one.low)}, {text(one.high)}]"


def above(name: str, what: str, found: float, bar: float) -> list[str]:
    """A sentence where `found` is not at most `bar`, for `Bench.missed`."""
    return [] if found <= bar else [f"{name}: {what} is {found:.3f}, the bar is {bar:.3f}"]


def chosen(only: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """Which of `known` are asked for, in their order; all for none. ValueError for an unknown one."""
    known = list(known)
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}: use some of {'; '.join(known)}")
    return [name for name in known if not only or name in only]
