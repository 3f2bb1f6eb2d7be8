"""A table of rows from results/, in the language of the document that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import Column, cells_of, markdown
from bench.origin import changed_files, device_words
from bench.results import ROOT, Line, read_lines, rows_of, tables_in
from bench.tables.korean import KOREAN

RESULTS = ROOT / "results"
DAGGER = "†"
STALE = f"{DAGGER} the weights or the yaml have changed since: `make results` measures again."
ABSENT = "Not measured yet; this command does:"
DASH = "–"


@dataclass(frozen=True)
class Table:
    """Rows of one file as a document shows them.

    file: under results/. first: head above the subjects. subjects: what each is called here, in order; all
    under their own names for none. settings: show each setting and device of the file; else the first alone.
    notes: sentences below it.
    """

    file: str
    columns: Sequence[Column]
    first: str = ""
    subjects: Mapping[str, str] | None = None
    settings: bool = False
    notes: Sequence[str] = ()

    def render(self, command: str, language: str = "en", folder: Path = RESULTS) -> str:
        """Markdown: a table with its origin below it, or which command measures what is absent."""
        say = KOREAN.get if language == "ko" else lambda text, default: default
        path = folder / self.file
        groups = tables_in(read_lines(path)) if path.is_file() else []
        if not self.settings:
            groups = groups[:1]
        parts = [part for lines in groups for part in self._group(lines, len(groups) > 1, say)]
        if not parts:
            return f"{say(ABSENT, ABSENT)} `{command}`"
        if any(DAGGER in part for part in parts):
            parts.append(say(STALE, STALE))
        return "\n\n".join([*parts, *(say(note, note) for note in self.notes)])

    def _group(self, lines: Sequence[Line], named: bool, say: Any) -> list[str]:
        chosen = {line["subject"]: line for line in lines}
        labels = self.subjects or {name: name for name in chosen}
        lines = [chosen[name] for name in labels if name in chosen]
        rows = rows_of(lines)
        head, *cells = cells_of(rows, self.columns, self.first)
        for line, row in zip(lines, cells, strict=True):
            label = labels[line["subject"]]
            row[0] = say(label, label) + (f" {DAGGER}" if changed_files(line) else "")
        cells = [[DASH if cell == "-" else say(cell, cell) for cell in row] for row in cells]
        table = markdown([say(cell, cell) for cell in head], cells)
        title = [", ".join(f"{name} {value}" for name, value in lines[0]["setting"].items())] if named else []
        return [*title, table, origin_line(lines)] if lines else []


def origin_line(lines: Iterable[Line]) -> str:
    """Commands, machine, dates and commits of rows, each once."""
    lines = list(lines)
    commands = dict.fromkeys(f"`{line['command']}`" for line in lines)
    machines = dict.fromkeys(device_words(line["device"]) for line in lines)
    dates = sorted({line["date"] for line in lines})
    commits = dict.fromkeys(line["commit"] or "no commit" for line in lines)
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{'; '.join(commands)}: {'; '.join(machines)}; {when}, {', '.join(commits)}."
