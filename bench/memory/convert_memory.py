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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.files import Files, converted
from bench.harness import GB, SD15, Bench, BenchFlags, chosen, markdown
from bench.processes import apart, peak_bytes
from bench.results import Measurement, Rows
from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import Values, walk
from checkpoints.files.write import write_weights
from checkpoints.names.original import ema_names
from checkpoints.surgery import CONTROL, UNET
from common.flags import flag

YAML = "YAML"  # in the words of a case: the model's
LIMIT = 1.0  # GB of the whole process
BRANCH_LIMIT = 2.5  # of one that draws a branch: at SD1.5 size that is 1.45 GB by itself
ADD = "add-control"  # the name here of what is a script of its own


@dataclass(frozen=True)
class Conversion:
    """source: of FILES; result: its name; words: of the command line behind the two.

    limit: GB at the peak.
    """

    source: str
    result: str
    words: tuple[str, ...] = ()
    limit: float = LIMIT


@dataclass(frozen=True)
class ConvertFlags(BenchFlags):
    """The command line."""

    config: Path = flag(SD15, "yaml of the model")
    folder: Path | None = flag(None, "where to write")
    only: tuple[str, ...] = flag((), "conversions (default: all)", "--only", "--cases", metavar="CASE")


def _plain(full: Path, path: Path, _config: Path) -> None:
    path.hardlink_to(full)


def _ckpt(full: Path, path: Path, _config: Path) -> None:
    converted(full, path)


def _base(full: Path, path: Path, _config: Path) -> None:
    """As bases are published: no branch, and nothing that only a branch's class stores."""
    state = open_checkpoint(full).tensors()
    write_weights(path, {n: t for n, t in state.items() if not n.startswith(CONTROL) and n != "logvar"})


def _averaged(full: Path, path: Path, _config: Path) -> None:
    """As trainers leave it: with a moving average beside each weight of the U-Net."""
    state = open_checkpoint(full).tensors()
    averages = {average: state[name] for average, name in ema_names(state).items()}
    write_weights(path, state | averages)


def _diffusers(full: Path, path: Path, config: Path) -> None:
    apart(convert, ["to-diffusers", str(full), str(path), "--config", str(config)])


# How each kind of source is made of the full file.
FILES: dict[str, Callable[[Path, Path, Path], None]] = {
    "plain.safetensors": _plain,
    "full.ckpt": _ckpt,
    "averaged.ckpt": _averaged,
    "base.safetensors": _base,
    "base.ckpt": _base,
    "diffusers": _diffusers,
}
BASES = ("--from-base", "plain.safetensors", "--to-base", "plain.safetensors")
CASES = {
    "to-safetensors": Conversion("full.ckpt", "out.safetensors"),
    "to-dtype fp16": Conversion("plain.safetensors", "out.safetensors", ("--dtype", "fp16")),
    "to-dtype bf16, of a ckpt": Conversion("full.ckpt", "out.ckpt", ("--dtype", "bf16")),
    "to-diffusers": Conversion("full.ckpt", "out", ("--config", YAML)),
    "to-original": Conversion("diffusers", "out.safetensors"),
    "extract-control": Conversion("full.ckpt", "out.pth"),
    "strip": Conversion("averaged.ckpt", "out.ckpt"),
    "transfer-control": Conversion("full.ckpt", "out.pth", BASES),
    ADD: Conversion("base.safetensors", "out.safetensors", ("--config", YAML), BRANCH_LIMIT),
    f"{ADD}, of a ckpt": Conversion("base.ckpt", "out.ckpt", ("--config", YAML), BRANCH_LIMIT),
}


def is_intact(result: Path, full: Path, *, has_new_branch: bool = False) -> bool:
    """Whether every tensor of `result`, under the original names, is that of `full` in its dtype.

    has_new_branch: its branch is the U-Net of `full` instead, as far as names agree.
    """
    got, expected = (open_checkpoint(path).weights().state for path in (result, full))
    if has_new_branch:
        expected |= _begun(got, expected)
    pairs = zip(walk(got.items()), walk((name, expected[name]) for name in got), strict=True)
    return all(torch.equal(tensor, other.to(tensor.dtype)) for (_, tensor), (_, other) in pairs)


def _begun(got: Mapping[str, Values], full: Mapping[str, Values]) -> dict[str, Values]:
    """What the branch in `got` must be: the U-Net's, and itself where that has no such name."""
    return {
        name: full.get(name.replace(CONTROL, UNET, 1), tensor)
        for name, tensor in got.items()
        if name.startswith(CONTROL)
    }


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
    case, folder = CASES[name], full.parent
    source, result = folder / case.source, folder / case.result
    if not source.exists():
        FILES[case.source](full, source, config)
    known = {YAML: config, **{file: folder / file for file in FILES}}
    words = [source, result, *(known.get(word, word) for word in case.words)]
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


def table(rows: Rows, _: ConvertFlags) -> str:
    """A row for each conversion."""
    cells = []
    for name, row in rows.items():
        sizes = [f"{row[quantity].value / GB:.2f}" for quantity in ("in", "out", "peak")]
        cells.append([name, *sizes, f"{row['seconds'].value:.0f}", bool(row["intact"].value)])
    return markdown(("conversion", "in GB", "out GB", "peak GB", "seconds", "intact"), cells)


def missed(rows: Rows) -> list[str]:
    """What is above its limit, and what is not what went in."""
    peaks = {name: row["peak"].value / GB for name, row in rows.items()}
    over = [name for name, peak in peaks.items() if not peak <= CASES[name].limit]
    found = [f"{name}: {peaks[name]:.2f} GB, the bar is {CASES[name].limit}" for name in over]
    return found + [f"{name}: gives other weights" for name, row in rows.items() if not row["intact"].value]


ABOUT = __doc__.format(limit=LIMIT, branch_limit=BRANCH_LIMIT, cases="; ".join(CASES))
main = Bench("bench.memory.convert_memory", ABOUT, ConvertFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
