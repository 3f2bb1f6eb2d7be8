"""What all benches share: the command line, the rows that are kept, the table that is printed.

A bench is flags, what measures, and what makes a table of the rows:

    main = Bench("bench.speed.lite", __doc__, LiteFlags, measure, table).run
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from bench.results import ROOT, Measurement, ResultsFile, Rows, by_subject, origin_of
from common.flags import add_flags, flag, read_flags
from common.shell import DONE, NOT_MET, Parser, run_command, say

ROUNDS = "timed runs of each"
SD15, TINY = ROOT / "models/cldm_v15.yaml", ROOT / "models/tiny.yaml"
FOLDER = ROOT / "outputs/bench"  # of random weights and what is made of them
GB, MB = 1e9, 1e6
GIB, MIB = 2**30, 2**20
PIXELS = 64  # sides are multiples: latents are an eighth, and the U-Net halves them three times


@dataclass(frozen=True)
class BenchFlags:
    """Those that all have; a bench adds its own, or other defaults.

    ValueError for whole numbers below `LOWEST` (else 1) and for sides that no model can have.
    """

    LOWEST: ClassVar[Mapping[str, int]] = {}
    SHARED: ClassVar[Sequence[str]] = ()  # which of the flags rows must share to be one table

    threads: int | None = flag(None, "of the CPU (default: as many as torch takes)")
    json: Path | None = flag(
        None, "keep the rows there, JSON lines; earlier ones are shown too", metavar="FILE"
    )

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
        setting = flags.setting() | {"threads": torch.get_num_threads()}
        origin = origin_of(self.name, setting, command, device)
        results, found = ResultsFile(flags.json, origin), []
        for one in self.measure(flags):
            found.append(one)
            results.keep(found, add=self.adds_up)
        rows = by_subject([*results.earlier(found, add=self.adds_up), *found])
        title = ", ".join(f"{name} {value}" for name, value in setting.items() if value)
        sys.stdout.write(f"{origin['device']}, {title}\n\n{self.table(rows, flags)}\n")
        failures = self.missed(rows)
        for failure in failures:
            say(f"not good enough: {failure}")
        return NOT_MET if failures and getattr(flags, "check", True) else DONE


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line a row."""
    first, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *lines])


def chosen(only: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """Which of `known` are asked for, in their order; all for none. ValueError for an unknown one."""
    known = list(known)
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}: use some of {'; '.join(known)}")
    return [name for name in known if not only or name in only]
