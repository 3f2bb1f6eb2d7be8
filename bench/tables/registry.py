"""The tables that documents show, and the commands that measure their rows: an entry in each dict."""

from __future__ import annotations

from bench.forms.costs import COST_COLUMNS
from bench.harness import Column, shown
from bench.tables.table import Table
from eval.people import COLUMNS as PEOPLE_COLUMNS
from eval.people import WIDTHS

COMPARED = (
    Column("outline followed", "followed", shown),
    Column("both colours", "colours", shown),
    Column("PSNR to truth", "psnr", shown),
    Column("SSIM to truth", "ssim", shown),
)
BRANCHES = {"full": "full", "lite": "lite"}
PEN_LINES = {name: name for name in (*(f"line of {width} px" for width in WIDTHS), "all")}
# File under results/ -> the commands that measure it.
SOURCES = {
    "full-lite.jsonl": (
        "python -m eval compare full=models/tiny.yaml lite=models/tiny_lite.yaml --data held-out --count 40 "
        "--threads 1 --out outputs/full-lite --results results/full-lite.jsonl",
    ),
    "people.jsonl": ("python -m eval people --count 35 --results results/people.jsonl",),
    "step.jsonl": ("python -m bench.step --rounds 3 --results results/step.jsonl",),
    "compressed.jsonl": ("python -m bench.quality.compressed --results results/compressed.jsonl",),
}
TABLES = {
    "full-lite": Table("full-lite.jsonl", (*COMPARED, *COST_COLUMNS), "model", BRANCHES),
    "people": Table("people.jsonl", PEOPLE_COLUMNS, "drawings by people", PEN_LINES),
    "people-shapes": Table("people.jsonl", PEOPLE_COLUMNS, "drawings by people"),
    "step": Table("step.jsonl", (
        Column("s a step", "wall"),
        Column("faster", "wall", ratio="faster"),
        Column("peak, GiB", "peak", "{high:.2f}", 2**30),
    ), "contender"),
    "compressed": Table("compressed.jsonl", (
        Column("file, MiB", "bytes", unit=2**20),
        Column("PSNR to full", "PSNR to full", "{:.1f} dB"),
        Column("outline followed", "followed", "{:.1f} %", 1e-2),
    ), "form", settings=True),
}  # fmt: skip
