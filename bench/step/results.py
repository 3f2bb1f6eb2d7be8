"""What `bench.step` measured: kept in a JSON file over several runs, compared, and printed as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.step.setting import Setting

GIB = 2**30
EQUAL = 1e-4  # relative difference between two float programs that compute the same: rounding of sums
FLOAT = (
    "diffusers",
    "diffusers+allocator",
    "ours-fp32",
)  # compute the same, the first is what others are held to
PARTS = ("text", "sampling", "decoding")

# By contender: what loading and the first run took, the later runs, and the error of the first.
Results = dict[str, dict[str, Any]]


def read_results(path: Path | None, setting: Setting) -> Results:
    """What earlier runs kept in `path`; ValueError in one sentence where their setting was another."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        earlier, results = found["setting"], found["results"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no results of this bench: name another file") from None
    if earlier != about(setting):
        raise ValueError(f"{path} was measured at {earlier}, not at {about(setting)}: name another file")
    return results


def write_results(path: Path, setting: Setting, results: Results) -> None:
    """Keep `results` for the next run."""
    draft = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps({"setting": about(setting), "results": results}, indent=1) + "\n")
    draft.replace(path)


def about(setting: Setting) -> dict[str, Any]:
    """What results must share to be one table."""
    kept = ("size", "batch", "threads", "device", "picture", "steps", "weights")
    shared = {"config": setting.config.name, "rules": list(setting.rules)}
    return shared | {name: getattr(setting, name) for name in kept}


def compare(outputs: Mapping[str, Path], results: Results) -> list[str]:
    """Note each output's error relative to the first one's; sentences about what should be equal."""
    import torch

    loaded = {name: torch.load(path).double() for name, path in outputs.items()}
    base, *_ = loaded
    if base not in FLOAT and len(loaded) > 1:
        return ["no float contender takes part: errors are not measured"]
    complaints = []
    for name, output in loaded.items():
        error = ((output - loaded[base]).norm() / loaded[base].norm()).item()
        results[name]["error"] = error
        if name in FLOAT and not error <= EQUAL:
            complaints.append(f"{name} differs from {base} by {error:.1e}: they do not compute the same")
    return complaints


def step_table(results: Results) -> str:
    """A row for each contender: time, times faster than the first, memory, error."""
    rows = [
        "| | wall s, median (min..max) | CPU s, median (min..max) | faster | peak loading, GiB "
        "| peak step, GiB | first step, CPU s | error, % | rounds |",
        "|---" * 9 + "|",
    ]
    base = _median(next(iter(results.values()))["runs"], "wall") if results else None
    for name, row in results.items():
        runs, wall = row["runs"], _median(row["runs"], "wall")
        faster = f"{base / wall:.2f} x" if base and wall else ""
        peak = max((run["peak"] for run in [row["first"], *runs]), default=0)
        error = "" if row.get("error") is None else f"{100 * row['error']:.3g}"
        cells = [
            name, _spread(runs, "wall"), _spread(runs, "cpu"), faster, f"{row['loading']['peak'] / GIB:.2f}",
            f"{peak / GIB:.2f}", f"{row['first']['cpu']:.1f}", error, len(runs),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def picture_table(results: Results, steps: int) -> str:
    """A row for each contender: seconds of the whole picture and of its parts."""
    rows = [
        f"| | picture of {steps} steps, s (min..max) | text, s | sampling, s | decoding, s | faster "
        "| peak, GiB | pictures |",
        "|---" * 8 + "|",
    ]
    base = _median(next(iter(results.values()))["runs"], "wall") if results else None
    for name, row in results.items():
        runs, wall = row["runs"], _median(row["runs"], "wall")
        parts = [f"{statistics.median(run['parts'][part] for run in runs):.2f}" for part in PARTS if runs]
        peak = max(run["peak"] for run in [row["first"], *runs])
        faster = f"{base / wall:.2f} x" if base and wall else ""
        cells = [name, _spread(runs, "wall"), *(parts or [""] * 3), faster, f"{peak / GIB:.2f}", len(runs)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def in_order(results: Results, names: Iterable[str]) -> Results:
    """`results` in the order of `names`, without those that are no contenders."""
    return {name: results[name] for name in names if name in results}


def _median(runs: Sequence[Mapping[str, float]], what: str) -> float | None:
    return statistics.median(run[what] for run in runs) if runs else None


def _spread(runs: Sequence[Mapping[str, float]], what: str) -> str:
    if not runs:
        return ""
    values = [run[what] for run in runs]
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"
