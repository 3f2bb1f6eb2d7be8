"""How much memory does a conversion take? Everything counts: Python, torch, pages mapped from files.

    python -m bench.memory.convert_memory

Writes a file of random weights at the size of a yaml (SD1.5 with control: 5.7 GB) without holding it, runs
each conversion of tool_convert.py, and tool_add_control.py, in a fresh process, and compares every tensor of
the result with its origin. Linux only; needs six times the file's size in --folder. Exit code 1 where a
conversion takes more than {limit} GB ({branch_limit} where it draws a branch), or gives other weights. Cases:
{cases}.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.files import Files, converted
from bench.harness import GB, SD15, Bench, BenchFlags, Column, above, chosen, table_of
from bench.processes import apart, peak_bytes
from bench.results import Measurement, Rows
from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import walk
from checkpoints.files.write import write_weights
from checkpoints.names.original import ema_names
from checkpoints.surgery import CONTROL, UNET
from common.flags import flag

YAML = "YAML"  # in the words of a case: the model's
LIMIT = 1.0  # GB of the whole process
BRANCH_LIMIT = 2.5  # of one that draws a branch: at SD1.5 size that is 1.45 GB by itself
ADD = "add-control"  # the name here of what is a script of its own
PLAIN = "plain.safetensors"  # the file as it is written at first
SOURCES = ("full.ckpt", "averaged.ckpt", "base.safetensors", "base.ckpt", "diffusers")  # made of it
TO_YAML = ("--config", YAML)
BASES = ("--from-base", PLAIN, "--to-base", PLAIN)
# Source; the result's name; words of the command line behind the two.
CASES: dict[str, tuple[str, ...]] = {
    "to-safetensors": ("full.ckpt", "out.safetensors"),
    "to-dtype fp16": (PLAIN, "out.safetensors", "--dtype", "fp16"),
    "to-dtype bf16, of a ckpt": ("full.ckpt", "out.ckpt", "--dtype", "bf16"),
    "to-diffusers": ("full.ckpt", "out", *TO_YAML),
    "to-original": ("diffusers", "out.safetensors"),
    "extract-control": ("full.ckpt", "out.pth"),
    "strip": ("averaged.ckpt", "out.ckpt"),
    "transfer-control": ("full.ckpt", "out.pth", *BASES),
    ADD: ("base.safetensors", "out.safetensors", *TO_YAML),
    f"{ADD}, of a ckpt": ("base.ckpt", "out.ckpt", *TO_YAML),
}
COLUMNS = (
    Column("in GB", "in", unit=GB),
    Column("out GB", "out", unit=GB),
    Column("peak GB", "peak", unit=GB),
    Column("seconds", "seconds", "{:.0f}"),
    Column("intact", "intact", "{}"),
)


@dataclass(frozen=True)
class ConvertFlags(BenchFlags):
    """The command line."""

    config: Path = flag(SD15, "yaml of the model")
    folder: Path | None = flag(None, "where to write")
    only: tuple[str, ...] = flag((), "conversions (default: all)", "--only", "--cases", metavar="CASE")


def make_source(full: Path, path: Path, config: Path) -> None:
    """One of SOURCES at `path`, made of the file `full`."""
    kind, state = path.name.partition(".")[0], open_checkpoint(full).tensors()
    if kind == "diffusers":
        apart(convert, ["to-diffusers", str(full), str(path), "--config", str(config)])
    elif kind == "base":  # as bases are published: no branch, and nothing that only a branch's class stores
        write_weights(path, {n: t for n, t in state.items() if not n.startswith(CONTROL) and n != "logvar"})
    elif kind == "averaged":  # as trainers leave it: a moving average beside each weight of the U-Net
        write_weights(path, state | {average: state[name] for average, name in ema_names(state).items()})
    else:
        converted(full, path)


def is_intact(result: Path, full: Path, *, has_new_branch: bool = False) -> bool:
    """Whether every tensor of `result`, under the original names, is that of `full` in its dtype.

    has_new_branch: its branch is the U-Net of `full` instead, as far as names agree.
    """
    got, expected = (open_checkpoint(path).weights().state for path in (result, full))
    if has_new_branch:
        branch = {name: tensor for name, tensor in got.items() if name.startswith(CONTROL)}
        expected |= {name: expected.get(name.replace(CONTROL, UNET, 1), t) for name, t in branch.items()}
    pairs = zip(walk(got.items()), walk((name, expected[name]) for name in got), strict=True)
    return all(torch.equal(tensor, other.to(tensor.dtype)) for (_, tensor), (_, other) in pairs)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def convert(words: list[str]) -> dict[str, float]:
    """Run the command that `words` begin with in this process: bytes at its peak, seconds."""
    import tool_add_control
    import tool_convert

    start = time.perf_counter()
    if code := tool_add_control.main(words[1:]) if words[0] == ADD else tool_convert.main(words):
        raise SystemExit(code)
    return {"peak": peak_bytes(), "seconds": time.perf_counter() - start}


def run_case(name: str, full: Path, config: Path) -> Iterator[Measurement]:
    """What a conversion of the file `full`, in the folder where it lies, takes and gives."""
    known = {YAML: config, PLAIN: full, **{source: full.parent / source for source in SOURCES}}
    source, result = known[CASES[name][0]], full.parent / CASES[name][1]
    if not source.exists():
        make_source(full, source, config)
    words = [source, result, *(known.get(word, word) for word in CASES[name][2:])]
    found = apart(convert, [name.split()[0].rstrip(","), *map(str, words)])
    intact = is_intact(result, full, has_new_branch=name.startswith(ADD))
    for quantity, size in (("in", size_of(source)), ("out", size_of(result)), ("peak", found["peak"])):
        yield Measurement(name, quantity, size, "B")
    yield Measurement(name, "seconds", found["seconds"], "s")
    yield Measurement(name, "intact", intact, "yes or no")
    shutil.rmtree(result) if result.is_dir() else result.unlink()


def measure(flags: ConvertFlags) -> Iterator[Measurement]:
    """Every conversion, in a process of its own."""
    asked = chosen(flags.only, CASES, "case")
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        full = Files(flags.config, Path(folder)).make_weights()
        for name in asked:
            yield from run_case(name, full, flags.config)


def missed(rows: Rows) -> list[str]:
    """What is above its limit, and what is not what went in."""
    found = [f"{name}: gives other weights" for name, row in rows.items() if not row["intact"].value]
    for name, row in rows.items():
        limit = BRANCH_LIMIT if name.startswith(ADD) else LIMIT
        found += above(name, "peak in GB", row["peak"].value / GB, limit)
    return found


ABOUT = __doc__.format(limit=LIMIT, branch_limit=BRANCH_LIMIT, cases="; ".join(CASES))
table = table_of(COLUMNS, "conversion")
main = Bench("bench.memory.convert_memory", ABOUT, ConvertFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
