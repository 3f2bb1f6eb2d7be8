"""Renders the tables of README, models/ and docs/ from the rows in results/; measures nothing unless asked.

    python -m bench.tables            # what `make tables` does
    python -m bench.tables --again    # what `make results` does: stale and absent rows are measured first

Rows whose weights or yaml have changed since are marked and listed. With --again their commands run; Ctrl-C
ends that, and what is finished stays.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench.origin import changed_files
from bench.results import ROOT, read_lines
from bench.tables.blocks import documents, filled
from bench.tables.registry import SOURCES, TABLES
from bench.tables.table import RESULTS
from common.atomic import atomic_write
from common.flags import add_flags, flag, read_flags
from common.shell import INTERRUPTED, Parser, run_command, say

STOPPED = "stopped; rows that are finished stay in results/, make tables shows them"


@dataclass(frozen=True)
class TablesFlags:
    """The command line."""

    again: bool = flag(False, "measure stale and absent rows first")
    only: tuple[str, ...] = flag((), "files of results/ to measure again (default: all stale or absent)",
                                 metavar="FILE")  # fmt: skip


def rendered(name: str, language: str) -> str:
    """A table of the registry; KeyError for an unknown one."""
    table = TABLES[name]
    return table.render("; ".join(SOURCES[table.file]), language)


def stale() -> Iterator[tuple[str, str]]:
    """File and reason of all rows that are absent or no longer those of the files here."""
    for file in SOURCES:
        path = RESULTS / file
        if not path.is_file():
            yield file, "absent"
            continue
        for line in read_lines(path):
            if changed := changed_files(line):
                yield file, f"{line['subject']}: {', '.join(changed)} changed"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m bench.tables", __doc__)
    add_flags(parser, TablesFlags)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(read_flags(TablesFlags, args)), stopped=STOPPED)


def _run(flags: TablesFlags) -> str:
    if unknown := [file for file in flags.only if file not in SOURCES]:
        raise ValueError(f"{unknown[0]} is not measured by any command: use some of {', '.join(SOURCES)}")
    if flags.again or flags.only:
        for file in flags.only or dict.fromkeys(file for file, _ in stale()):
            for command in SOURCES[file]:
                measure(command)
    changed = []
    for path in documents():
        text = filled(path, rendered)
        if text != path.read_text(encoding="utf-8"):
            with atomic_write(path) as partial:
                partial.write_text(text, encoding="utf-8")
            changed.append(path.relative_to(ROOT).as_posix())
    for file, reason in stale():
        say(f"results/{file}: {reason}; make results measures it")
    return f"rendered: {', '.join(changed)}" if changed else "every table is what results/ says"


def measure(command: str) -> None:
    """Run a command of SOURCES; ChildProcessError where it fails, KeyboardInterrupt where it was stopped."""
    say(command)
    python, *words = shlex.split(command)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(f"{command} ended with code {code}")
