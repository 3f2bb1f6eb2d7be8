"""How much memory does a checkpoint take to load or convert? Python, torch and mapped pages all count.

    python -m bench.memory.checkpoints
    python -m bench.memory.checkpoints --only "load safetensors" "load fp16" strip

Writes a file of random weights at the size of a yaml (SD1.5 with control: 5.7 GB) without holding it. Each
case has a fresh process: `load_model` of a form of the file, every parameter read once; or a conversion of
tool_convert.py, or tool_add_control.py, whose result is compared with its origin tensor by tensor. "Over" is
the peak without what a process has with everything imported. Linux only; needs six times the file's size in
--folder. Exit code 1 where loading takes more than {load_limit} times its weights, a conversion more than
{limit} GB ({branch_limit} where it draws a branch), or other weights come out. Cases:
{cases}.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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

LOAD_LIMIT = 1.15  # peak over the weights' size that loading must stay below
SUM_PIECE = 1 << 20  # values summed at a time
# name -> dtype of the file, dtype to load in, suffix
FORMS = {
    "load safetensors": (torch.float32, torch.float32, ".safetensors"),
    "load ckpt": (torch.float32, torch.float32, ".ckpt"),
    "load fp16": (torch.float16, torch.float32, ".safetensors"),
    "load fp16-kept": (torch.float16, torch.float16, ".safetensors"),
    "load to-fp16": (torch.float32, torch.float16, ".safetensors"),
}
YAML = "YAML"  # in the words of a case: the model's
LIMIT = 1.0  # GB of the whole process
BRANCH_LIMIT = 2.5  # of one that draws a branch: at SD1.5 size that is 1.45 GB by itself
ADD = "add-control"  # the name here of what is a script of its own
PLAIN = "plain.safetensors"  # the file as it is written at first
SOURCES = ("full.ckpt", "averaged.ckpt", "base.safetensors", "base.ckpt", "diffusers")  # made of it
TO_YAML = ("--config", YAML)
BASES = ("--from-base", PLAIN, "--to-base", PLAIN)
# Source; the result's name; words of the command line behind the two.
CONVERSIONS: dict[str, tuple[str, ...]] = {
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
    Column("over GB", "over", unit=GB),
    Column("over / out", "ratio", "{:.3f}"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("intact", "intact", "{}"),
)
UNITS = {"ratio": "", "seconds": "s", "intact": "yes or no"}  # of what is no bytes


@dataclass(frozen=True)
class CheckpointFlags(BenchFlags):
    """The command line."""

    config: Path = flag(SD15, "yaml of the model")
    folder: Path | None = flag(None, "where to write")
    only: tuple[str, ...] = flag((), "cases (default: all)", metavar="CASE")


def fingerprint(tensors: Iterable[Tensor]) -> float:
    """The sum of all numbers, rounded once."""
    # In pieces, since a sum in float64 copies its input: the check must not be what needs the memory.
    pieces = (piece for tensor in tensors for piece in tensor.detach().flatten().split(SUM_PIECE))
    return math.fsum(piece.sum(dtype=torch.float64).item() for piece in pieces)


def load(config: Path, weights: Path, dtype: torch.dtype, expected: float) -> dict[str, float]:
    """Load in this process and read every parameter: what it takes, by quantity."""
    from cldm.model import load_model
    from ldm.config import create_meta_model

    create_meta_model(config)  # brings in every import, so that the baseline has them
    baseline, start = peak_bytes(), time.perf_counter()
    model = load_model(config, weights, dtype=dtype)
    seconds = time.perf_counter() - start
    intact, peak = fingerprint(model.parameters()) == expected, peak_bytes()
    size, over = sum(tensor.nbytes for tensor in model.state_dict().values()), peak - baseline
    found = {"out": size, "peak": peak, "over": over, "ratio": over / size}
    return found | {"seconds": seconds, "intact": intact}


def load_case(name: str, files: Files) -> dict[str, float]:
    """What loading the float file in one of FORMS takes, by quantity."""
    from ldm.config import create_meta_model

    stored, loaded, suffix = FORMS[name]
    path = converted(files.weights, files.folder / f"weights{suffix}", stored)
    parameters = {name for name, _ in create_meta_model(files.config).named_parameters()}
    written = (t.to(stored).to(loaded) for name, t in files.tensors() if name in parameters)
    found = apart(load, files.config, path, loaded, fingerprint(written))
    size = path.stat().st_size
    path.unlink()  # one form at a time on the disk
    return {"in": size} | found


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


def convert_case(name: str, files: Files) -> dict[str, float]:
    """What one of CONVERSIONS of the float file takes and gives, by quantity."""
    full, folder = files.weights, files.folder
    known = {YAML: files.config, PLAIN: full, **{source: folder / source for source in SOURCES}}
    source, result = known[CONVERSIONS[name][0]], folder / CONVERSIONS[name][1]
    if not source.exists():
        make_source(full, source, files.config)
    words = [source, result, *(known.get(word, word) for word in CONVERSIONS[name][2:])]
    found = apart(convert, [name.split()[0].rstrip(","), *map(str, words)])
    intact = is_intact(result, full, has_new_branch=name.startswith(ADD))
    sizes = {"in": size_of(source), "out": size_of(result)}
    shutil.rmtree(result) if result.is_dir() else result.unlink()
    return sizes | found | {"intact": intact}


def measure(flags: CheckpointFlags) -> Iterator[Measurement]:
    """Every case, in a process of its own."""
    asked = chosen(flags.only, CASES, "case")
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        files = Files(flags.config, Path(folder))
        files.make_weights()
        for name in asked:
            for quantity, value in CASES[name](name, files).items():
                yield Measurement(name, quantity, value, UNITS.get(quantity, "B"))


def missed(rows: Rows) -> list[str]:
    """What is above its limit, and what is not what went in."""
    found = [f"{name}: other weights come out" for name, row in rows.items() if not row["intact"].value]
    for name, row in rows.items():
        if name in FORMS:
            found += above(name, "peak over weights", row["ratio"].value, LOAD_LIMIT)
        else:
            limit = BRANCH_LIMIT if name.startswith(ADD) else LIMIT
            found += above(name, "peak in GB", row["peak"].value / GB, limit)
    return found


CASES = dict.fromkeys(FORMS, load_case) | dict.fromkeys(CONVERSIONS, convert_case)
LIMITS = {"load_limit": LOAD_LIMIT, "limit": LIMIT, "branch_limit": BRANCH_LIMIT}
ABOUT = __doc__.format(**LIMITS, cases="; ".join(CASES))
table = table_of(COLUMNS, "case")
main = Bench("bench.memory.checkpoints", ABOUT, CheckpointFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
