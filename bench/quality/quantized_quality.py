"""What each scheme, switch and pruning level costs in pictures: the tiny model on scenes it has never seen.

    python -m bench.quality.quantized_quality
    python -m bench.quality.quantized_quality --rows int8_static int4_group --count 20 \
        pruned=runs/pruned.safetensors

Every row makes the same pictures from the same noise (`eval.fill50k`) and is held against those of the full
precision and against the truth. Files are made by `python -m quantize` with the row's flags; a file on the
command line is a row of its own, quantized or not. Rows that are finished lie in the folder of the run and
are not made again, unless weights, settings or flags have changed. Seconds are those of this run, whatever
else the machine did. Exit codes: 0; 1 with --check where a bar is missed; 2 with one sentence; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.quality.quantized_rows import ROWS, Row, Task, file_row, full_precision, scheme_row

FULL = "full precision"
# Rows with a bar: median PSNR to full precision, and how many points a share may lose.
BARS = {"int8_static": (35.0, 1.0), "int8_dynamic": (35.0, 1.0), "int4_group, plan": (28.0, 3.0)}
SHARES = {"followed_share": "followed", "coloured_share": "colours", "median_iou": "median IoU"}
HEAD = (
    "row", "MiB", "s a picture", "PSNR to full", "its 5 %", "SSIM to full", "its 5 %", "PSNR to truth",
    "SSIM to truth", "followed", "colours", "median IoU",
)  # fmt: skip
MIB = 2**20


def table(rows: Mapping[str, Row]) -> str:
    """Markdown, one line a row."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {name} | {' | '.join(_cells(row))} |" for name, row in rows.items()]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    likeness = ["-"] * 4
    if "psnr" in row:
        likeness = [f"{row['psnr']:.1f} dB", f"{row['psnr_low']:.1f} dB"]
        likeness += [f"{row['ssim']:.4f}", f"{row['ssim_low']:.4f}"]
    return [
        f"{row['bytes'] / MIB:.2f}",
        f"{row['seconds']:.2f}",
        *likeness,
        f"{row['median_psnr']:.2f} dB",
        f"{row['median_ssim']:.3f}",
        f"{100 * row['followed_share']:.1f} %",
        f"{100 * row['coloured_share']:.1f} %",
        f"{row['median_iou']:.4f}",
    ]


def missed(rows: Mapping[str, Row]) -> list[str]:
    """Which bars the rows miss, in words."""
    found = []
    for name, (bar, points) in BARS.items():
        if (row := rows.get(name)) is None:
            continue
        if not row["psnr"] >= bar:
            found.append(f"{name}: PSNR to full precision is {row['psnr']:.1f} dB, the bar is {bar:.0f} dB")
        for key, label in SHARES.items():
            lost = 100 * (rows[FULL][key] - row[key])
            if not lost <= points + 1e-9:  # shares are whole pictures: 1.0 point may come out a hair above
                found.append(f"{name}: {label} loses {lost:.1f} points, the bar is {points:.0f}")
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.quantized_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="NAME=FILE", help="further rows: files of quantize or quantize.prune")
    add("--config", type=Path, default=Path("models/tiny.yaml"), help="model (default: %(default)s)")
    add("--rows", nargs="*", default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)} (default: all)")
    add("--run", type=Path, default=Path("runs/quantized"), metavar="DIR", help="default: %(default)s")
    add("--count", type=int, default=200, help="held-out scenes (default: %(default)s)")
    add("--size", type=int, default=128, help="side in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of scenes and noise (default: %(default)s)")
    add("--check", action="store_true", help="end with code 1 where a bar is missed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as above."""
    args = parse_args(argv)
    try:
        rows = _run(args)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the rows that were finished are in {args.run}\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    failures = missed(rows)
    sys.stderr.writelines(f"not good enough: {failure}\n" for failure in failures)
    return 1 if failures and args.check else 0


def _run(args: argparse.Namespace) -> dict[str, Row]:
    if unknown := [name for name in args.rows if name not in ROWS]:
        raise ValueError(f"unknown row {unknown[0]!r}: use some of {', '.join(ROWS)}")
    if args.count < 1:
        raise ValueError(f"--count {args.count}: give 1 or more")
    files = dict(_named(text) for text in args.files)
    args.run.mkdir(parents=True, exist_ok=True)
    task = Task(args.config, args.run, args.count, args.seed, args.size)
    full, expected = full_precision(task)
    rows = {FULL: full}
    for name in args.rows:
        rows[name] = scheme_row(task, name, expected)
    for name, path in files.items():
        rows[name] = file_row(task, name, path, expected)
    print(f"{args.count} held-out scenes of {args.size} pixels, 20 steps, seed {args.seed}")
    print(table(rows))
    return rows


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"{text!r} is not NAME=FILE, such as pruned=runs/pruned.safetensors")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    return name, Path(path)


if __name__ == "__main__":
    raise SystemExit(main())
