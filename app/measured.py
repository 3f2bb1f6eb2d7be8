"""The measured rows of `results/`, for tables and plots; `results/schema.json` says what a line is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
SCHEMA = 1
TABLE = ("bench", "setting", "device")  # what lines must share to be rows of one table


@dataclass(frozen=True)
class Table:
    """What one bench measured at one setting on one device. rows: subject -> quantity -> its value."""

    name: str
    command: str
    rows: dict[str, dict[str, Any]]

    @property
    def quantities(self) -> list[str]:
        """In the order of measuring, each with its unit."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def cell(self, subject: str, quantity: str) -> str:
        """The value as it is shown, with its interval where there is one."""
        measured = self.rows[subject].get(quantity)
        if measured is None:
            return "–"
        low, high = measured["interval"]
        span = "" if low is None or high is None else f" ({_number(low)} – {_number(high)})"
        return f"{_number(measured['value'])} {measured['unit']}{span}"


def read_tables(folder: Path = RESULTS) -> list[Table]:
    """All tables in the folder's files, the newest last; what is no row of ours is left out."""
    tables: dict[str, Table] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                key = json.dumps([path.name, *(line[name] for name in TABLE)], sort_keys=True)
                name = f"{path.stem} · {line['bench']} · {line['device']['name']} · {line['date']}"
                fits = line["schema"] == SCHEMA
            except (ValueError, KeyError, TypeError):
                continue
            if fits:
                table = tables.setdefault(key, Table(name, line["command"], {}))
                table.rows[line["subject"]] = line["values"]
    return list(tables.values())


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
