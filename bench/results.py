"""Measurements as rows, and the file of JSON lines that keeps them.

A line is one subject of one bench: its values (each with unit, n and interval), and what a reader needs to
trust them: setting, command, commit, date, device, versions, sha256 of yaml and weights. Another device or
setting is another line, never an overwrite. `results/schema.json` describes a line; tables are made of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.atomic import atomic_write

ROOT = Path(__file__).parents[1]
SCHEMA = 1  # of a line; another number is another version's
IDENTITY = ("bench", "setting", "device")  # what lines must share to be rows of one table


@dataclass(frozen=True)
class Measurement:
    """One quantity of one subject, such as the wall seconds of a step of `ours-fp32`.

    value: the median of what was taken `n` times, between `low` and `high`; or a share, a median or a mean
    over n pictures with its 95 % interval. takes: each time by itself, where rounds of several runs may be
    put together.
    """

    subject: str
    quantity: str
    value: float
    unit: str
    n: int = 1
    low: float | None = None
    high: float | None = None
    takes: tuple[float, ...] = ()

    @classmethod
    def of(cls, subject: str, quantity: str, unit: str, takes: Iterable[float]) -> Measurement:
        """The median of `takes`, of which there is one at least, and their interval."""
        takes = tuple(takes)
        middle, low, high = statistics.median(takes), min(takes), max(takes)
        return cls(subject, quantity, middle, unit, len(takes), low, high, takes)


# By subject, then by quantity, both in the order of measuring.
Rows = Mapping[str, Mapping[str, Measurement]]
Line = dict[str, Any]


def by_subject(measurements: Iterable[Measurement]) -> dict[str, dict[str, Measurement]]:
    """The rows of a table; takes of the same quantity are put together, else the last one counts."""
    rows: dict[str, dict[str, Measurement]] = {}
    for one in measurements:
        row = rows.setdefault(one.subject, {})
        if one.takes and one.quantity in row:
            one = Measurement.of(one.subject, one.quantity, one.unit, row[one.quantity].takes + one.takes)
        row[one.quantity] = one
    return rows


class ResultsFile:
    """A file of JSON lines, for the rows of one bench at one setting on one device; None keeps nothing.

    origin: of `bench.origin.origin_of`. ValueError in one sentence where the file holds something else.
    """

    def __init__(self, path: Path | None, origin: Mapping[str, Any]) -> None:
        self._path, self._origin = path, dict(origin)
        self._lines = read_lines(path) if path and path.is_file() else []

    def earlier(self, measurements: Iterable[Measurement] = (), *, add: bool) -> list[Measurement]:
        """What runs before this one have kept. add: also of what this one has measured."""
        anew = set() if add else {one.subject for one in measurements}
        lines = (line for line in self._lines if self._is_ours(line) and line["subject"] not in anew)
        return [one for line in lines for one in measurements_of(line)]

    def keep(self, measurements: Iterable[Measurement], *, add: bool) -> None:
        """Write the rows of this run. add: together with earlier ones of the same, else in their place."""
        if self._path is None:
            return
        rows = by_subject(measurements)
        place = {line["subject"]: line for line in self._lines if self._is_ours(line)}
        made = {name: self._line(name, row, place.get(name) if add else None) for name, row in rows.items()}
        lines = [made.pop(line["subject"], line) if self._is_ours(line) else line for line in self._lines]
        with atomic_write(self._path) as partial:
            texts = (
                json.dumps(line, ensure_ascii=False, allow_nan=False) for line in [*lines, *made.values()]
            )
            partial.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

    def _line(self, subject: str, row: Mapping[str, Measurement], before: Line | None) -> Line:
        all_of_it = [*(measurements_of(before) if before else []), *row.values()]
        values = {name: _value(one) for name, one in by_subject(all_of_it)[subject].items()}
        return {"schema": SCHEMA, "subject": subject, "values": values} | self._origin

    def _is_ours(self, line: Line) -> bool:
        return all(line[name] == self._origin[name] for name in IDENTITY)


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; ValueError in one sentence where it holds anything else."""
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        strange = [line["schema"] for line in lines if line["schema"] != SCHEMA]
        for line in lines if not strange else ():
            measurements_of(line), [line[name] for name in (*IDENTITY, "command", "date", "files")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} holds no rows of our benches: name another file") from None
    if strange:
        raise ValueError(
            f"{path} has rows of schema {strange[0]}, this program writes {SCHEMA}: measure anew"
        )
    return lines


def tables_in(lines: Iterable[Line]) -> list[list[Line]]:
    """Lines that are rows of one table together: of one bench, setting and device; in the file's order."""
    tables: dict[str, list[Line]] = {}
    for line in lines:
        tables.setdefault(json.dumps([line[name] for name in IDENTITY], sort_keys=True), []).append(line)
    return list(tables.values())


def rows_of(lines: Iterable[Line]) -> Rows:
    """The rows of one table."""
    return by_subject(one for line in lines for one in measurements_of(line))


def read_rows(path: Path) -> Rows:
    """The rows of a file; ValueError where they are of more than one bench, setting or device."""
    tables = tables_in(read_lines(path))
    if len(tables) != 1:
        raise ValueError(f"{path} holds rows of several settings, or none: give a file of one run")
    return rows_of(tables[0])


def measurements_of(line: Line) -> list[Measurement]:
    """What a line says; KeyError, TypeError or ValueError where it is none."""
    return [_measurement(line["subject"], name, value) for name, value in line["values"].items()]


def _value(one: Measurement) -> dict[str, Any]:
    value = {name: part for name, part in asdict(one).items() if name in ("value", "unit", "n")}
    value |= {"interval": [one.low, one.high]} | ({"takes": list(one.takes)} if one.takes else {})
    return _mapped(value, lambda x: str(x) if isinstance(x, float) and not math.isfinite(x) else x)


def _measurement(subject: str, quantity: str, value: Mapping[str, Any]) -> Measurement:
    low, high = (None if end is None else _number(end) for end in value["interval"])
    takes = tuple(map(_number, value.get("takes", ())))
    return Measurement(
        subject, quantity, _number(value["value"]), value["unit"], value["n"], low, high, takes
    )


def _number(value: float | str) -> float:
    """JSON has no infinity, which the PSNR of equal pictures is: it is written as a word."""
    return float(value) if isinstance(value, str) else value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, list) else change(value)
