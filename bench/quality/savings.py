"""What saving steps costs in pictures, on the tiny model, and what it saves in seconds, at any size.

    python -m bench.quality.savings
    python -m bench.quality.savings_parts --json outputs/parts.json
    python -m bench.quality.savings --parts outputs/parts.json

Every row makes the same pictures from the same noise (`eval.fill50k`, held-out scenes) and is held against
those of DDIM's 20 and 50 steps, and against the truth. With --parts, the passes of the U-Net and the branch
are counted instead, and the table says how many seconds a picture of that many passes takes by the measured
seconds of each part: a sum, not a measurement. Exit codes: 0; 2 with one sentence; 130 Ctrl-C, finished rows
stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.quality.savings_parts import PEER
from bench.quality.savings_rows import BETWEEN, BRANCH, LONG, ROWS, UNSAVED, WHOLE, Task, likeness, passes_of
from ldm.modules.feature_cache import DEFAULT_CACHE_POINT

HEAD = (
    "row", f"PSNR to {UNSAVED}", "its 5 %", f"SSIM to {UNSAVED}",
    f"PSNR to {LONG}", "PSNR to truth", "followed", "colours",
)  # fmt: skip
ONCE = ("text", "hint", "decode")  # parts that a picture needs once
Row = dict[str, Any]


def measure(task: Task, names: list[str]) -> dict[str, Row]:
    """Numbers by row; the two that others are held against are made in any case."""
    from tqdm import tqdm

    from cldm.pipeline import Pipeline
    from eval.fill50k import held_out_scenes, score

    pipeline, scenes = Pipeline.from_files(task.config), held_out_scenes(task.count, task.seed)
    unsaved, long = (task.made(pipeline, ROWS[name]) for name in (UNSAVED, LONG))
    rows = {}
    for name in tqdm(names, unit="row", disable=None):
        pictures = task.made(pipeline, ROWS[name])
        rows[name] = {
            "unsaved": None if name == UNSAVED else likeness(pictures, unsaved),
            "long": None if name == LONG else likeness(pictures, long),
            "truth": score(pictures, scenes).summary(),
        }
    return rows


def quality_table(rows: Mapping[str, Row]) -> str:
    """Markdown, one line a row."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name, row in rows.items():
        near, far, truth = row["unsaved"], row["long"], row["truth"]
        cells = [name, *["-"] * 3]
        if near:
            cells[1:] = [f"{near['psnr']:.1f} dB", f"{near['psnr_low']:.1f} dB", f"{near['ssim']:.4f}"]
        cells += [f"{far['psnr']:.1f} dB" if far else "-", f"{truth['median_psnr']:.1f} dB"]
        cells += [f"{100 * truth[share]:.1f} %" for share in ("followed_share", "coloured_share")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds_of(passes: Mapping[str, float], cut: str, parts: Mapping[str, float]) -> float:
    """Seconds of a picture with these passes: the sum of the measured `parts` (medians, by name)."""
    steps = passes[WHOLE] * parts[WHOLE] + passes[BRANCH] * parts[BRANCH] + passes[BETWEEN] * parts[cut]
    return steps + sum(parts[name] for name in ONCE)


def baseline(long: Mapping[str, float], reports: Mapping[str, Mapping[str, Any]]) -> tuple[str, float]:
    """What others are held against, and its seconds: diffusers' DDIM 50 if its step was measured, else ours.

    What diffusers needs once a picture is taken to be what we need.
    """
    for report in reports.values():
        if PEER in report["parts"]:
            parts = _medians(report)
            return f"diffusers, {LONG}", ROWS[LONG]["steps"] * parts[PEER] + sum(parts[one] for one in ONCE)
    name, report = next(iter(reports.items()))
    return f"{name}, {LONG}", seconds_of(long, DEFAULT_CACHE_POINT, _medians(report))


def seconds_table(passes: Mapping[str, Mapping[str, float]], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: passes by kind, seconds by each report's parts, and how much faster than the baseline."""
    against, base = baseline(passes[LONG], reports)
    head = ["row", WHOLE, BETWEEN, BRANCH, *(part for name in reports for part in (f"{name}, s", "faster"))]
    lines = [f"{against}: {base:.1f} s\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, counts in passes.items():
        cells = [name, *(f"{counts[kind]}" for kind in (WHOLE, BETWEEN, BRANCH))]
        for report in reports.values():
            took = seconds_of(counts, ROWS[name].get("reuse_cut", DEFAULT_CACHE_POINT), _medians(report))
            cells += [f"{took:.1f}", f"{base / took:.2f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _medians(report: Mapping[str, Any]) -> dict[str, float]:
    return {part: timing["median"] for part, timing in report["parts"].items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.savings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path("models/tiny.yaml"), help="model (default: %(default)s)")
    add("--rows", nargs="*", default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)} (default: all)")
    add("--run", type=Path, default=Path("runs/savings"), metavar="DIR", help="default: %(default)s")
    add("--count", type=int, default=200, help="held-out scenes (default: %(default)s)")
    add("--size", type=int, default=128, help="side in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of scenes and noise (default: %(default)s)")
    add(
        "--parts",
        type=Path,
        nargs="*",
        default=[],
        metavar="JSON",
        help="of bench.quality.savings_parts: seconds, no quality",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the tables; exit codes as above."""
    args = parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the rows that were finished are in {args.run}\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _run(args: argparse.Namespace) -> int:
    if unknown := [name for name in args.rows if name not in ROWS]:
        raise ValueError(f"unknown row {unknown[0]!r}: use some of {', '.join(ROWS)}")
    if args.count < 1:
        raise ValueError(f"--count {args.count}: give 1 or more")
    reports = {path.stem: json.loads(path.read_text()) for path in args.parts}
    names = list(dict.fromkeys([LONG, *args.rows] if reports else args.rows))
    if reports:
        from cldm.pipeline import Pipeline

        pipeline = Pipeline.from_files(args.config)
        passes = {name: passes_of(pipeline, ROWS[name]) for name in names}
        print(f"Passes a picture, and seconds by measured parts\n\n{seconds_table(passes, reports)}")
        return 0
    args.run.mkdir(parents=True, exist_ok=True)
    task = Task(args.config, args.run, args.count, args.seed, args.size)
    print(f"{args.count} held-out scenes of {args.size} pixels, seed {args.seed}\n")
    print(quality_table(measure(task, names)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
