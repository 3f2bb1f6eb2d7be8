"""Measurements as rows, and the file of JSON lines that keeps them.

A line is one quantity of one subject: value, unit, n, interval (lowest to highest), and what a reader needs
to trust it: bench, setting, command, commit, device, versions. Another device or setting is another line,
never an overwrite. Tables are made of rows.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from common.atomic import atomic_write

ROOT = Path(__file__).parents[1]
CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "diffusers", "openvino", "nncf", "torchao")  # whose versions are noted, where installed


@dataclass(frozen=True)
class Measurement:
    """One quantity of one subject, such as the wall seconds of a step of `ours-fp32`.

    value: the median of what was taken `n` times, between `low` and `high`. takes: each time by itself, where
    rounds of several runs may be put together.
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

    origin: of `origin_of`. ValueError in one sentence where the file holds something else.
    """

    def __init__(self, path: Path | None, origin: Mapping[str, Any]) -> None:
        self._path, self._origin = path, dict(origin)
        self._lines = _read_lines(path) if path and path.is_file() else []

    def earlier(self, measurements: Iterable[Measurement] = (), *, add: bool) -> list[Measurement]:
        """What runs before this one have kept. add: also of what this one has measured."""
        lines = self._lines if add else self._lines_without(measurements)
        return [_measurement(line) for line in lines if self._is_ours(line)]

    def keep(self, measurements: Iterable[Measurement], *, add: bool) -> None:
        """Write the rows of this run. add: beside earlier ones of the same, else in their place."""
        if self._path is None:
            return
        rows = [one for row in by_subject(measurements).values() for one in row.values()]
        others = self._lines if add else self._lines_without(rows)
        lines = [*others, *(_line(one) | self._origin for one in rows)]
        with atomic_write(self._path) as partial:
            partial.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def _lines_without(self, measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
        names = {(one.subject, one.quantity) for one in measurements}
        replaced = lambda line: self._is_ours(line) and (line["subject"], line["quantity"]) in names  # noqa: E731
        return [line for line in self._lines if not replaced(line)]

    def _is_ours(self, line: Mapping[str, Any]) -> bool:
        return all(line[name] == self._origin[name] for name in ("bench", "setting", "device"))


def read_rows(path: Path) -> Rows:
    """The rows of a file; ValueError where they are of more than one bench or setting."""
    lines = _read_lines(path)
    if len({json.dumps([line["bench"], line["setting"], line["device"]]) for line in lines}) != 1:
        raise ValueError(f"{path} holds rows of several settings, or none: give a file of one run")
    return by_subject(map(_measurement, lines))


def origin_of(bench: str, setting: Mapping[str, Any], command: str, device: str) -> dict[str, Any]:
    """What all rows of a run share; device: `cpu`, or how torch calls a GPU."""
    setting = json.loads(json.dumps(setting))  # as it will be read again
    origin = {"bench": bench, "setting": setting, "command": command, "commit": _commit()}
    return origin | {"device": _device_name(device), "versions": _versions()}


def _line(one: Measurement) -> dict[str, Any]:
    line = {name: value for name, value in asdict(one).items() if name not in ("low", "high", "takes")}
    return line | {"interval": [one.low, one.high]} | ({"takes": one.takes} if one.takes else {})


def _measurement(line: Mapping[str, Any]) -> Measurement:
    low, high = line["interval"]
    plain = Measurement(*(line[name] for name in ("subject", "quantity", "value", "unit", "n")))
    return replace(plain, low=low, high=high, takes=tuple(line.get("takes", ())))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        for line in lines:
            _measurement(line), line["bench"], line["setting"], line["device"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no rows of our benches: name another file") from None
    return lines


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # a bare copy of the tree
        return None
    return done.stdout.strip()


def _device_name(device: str) -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
