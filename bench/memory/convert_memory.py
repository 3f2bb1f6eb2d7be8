"""How much memory does a conversion take? Everything counts: Python, torch, pages mapped from files.

Writes a file of random weights at the size of a yaml (SD1.5 with control: 5.7 GB) without holding it, runs
each conversion of tool_convert.py, and tool_add_control.py, in a fresh process, compares every tensor of the
result with its origin, and prints a table. Linux only; needs six times the file's size on disk. Run:
python -m bench.memory.convert_memory
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

import tool_add_control
import tool_convert
from bench.memory.load_memory import GB, ROOT, peak_bytes, to_ckpt, write_random
from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import Values, walk
from checkpoints.files.write import write_weights
from checkpoints.names.original import ema_names
from checkpoints.surgery import CONTROL, UNET
from ldm.config import create_meta_model

YAML = "YAML"  # in the words of a case: the model's
LIMIT = 1.0  # GB of the whole process
BRANCH_LIMIT = 2.5  # of one that draws a branch: at SD1.5 size that is 1.45 GB by itself
ADD = "add-control"  # the name here of what is a script of its own


@dataclass(frozen=True)
class Case:
    """One conversion. source: of FILES; result: its name; words: of the command line behind the two.

    limit: GB at the peak.
    """

    source: str
    result: str
    words: tuple[str, ...] = ()
    limit: float = LIMIT


def _plain(full: Path, path: Path, _config: Path) -> None:
    path.hardlink_to(full)


def _ckpt(full: Path, path: Path, _config: Path) -> None:
    to_ckpt(full, path)


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
    with redirect_stdout(sys.stderr):
        assert tool_convert.main(["to-diffusers", str(full), str(path), "--config", str(config)]) == 0


# How each kind of source is made of full.safetensors.
FILES: dict[str, Callable[[Path, Path, Path], None]] = {
    "plain.safetensors": _plain,
    "full.ckpt": _ckpt,
    "averaged.ckpt": _averaged,
    "base.safetensors": _base,
    "base.ckpt": _base,
    "diffusers": _diffusers,
}
CASES = {
    "to-safetensors": Case("full.ckpt", "out.safetensors"),
    "to-dtype fp16": Case("plain.safetensors", "out.safetensors", ("--dtype", "fp16")),
    "to-dtype bf16, of a ckpt": Case("full.ckpt", "out.ckpt", ("--dtype", "bf16")),
    "to-diffusers": Case("full.ckpt", "out", ("--config", YAML)),
    "to-original": Case("diffusers", "out.safetensors"),
    "extract-control": Case("full.ckpt", "out.pth"),
    "strip": Case("averaged.ckpt", "out.ckpt"),
    "transfer-control": Case(
        "full.ckpt", "out.pth", ("--from-base", "plain.safetensors", "--to-base", "plain.safetensors")
    ),
    ADD: Case("base.safetensors", "out.safetensors", ("--config", YAML), BRANCH_LIMIT),
    f"{ADD}, of a ckpt": Case("base.ckpt", "out.ckpt", ("--config", YAML), BRANCH_LIMIT),
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


def run_case(name: str, folder: Path, config: Path) -> tuple[list[str], bool]:
    """A row of the table for CASES[name] on the files in `folder`, and whether all is well."""
    case = CASES[name]
    source, result = folder / case.source, folder / case.result
    if not source.exists():
        FILES[case.source](folder / "full.safetensors", source, config)
    known = {YAML: config, **{file: folder / file for file in FILES}}
    words = [str(known.get(word, word)) for word in case.words]
    command = [sys.executable, "-m", "bench.memory.convert_memory", "--measure", name.split()[0].rstrip(",")]
    done = subprocess.run(
        [*command, str(source), str(result), *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    intact = is_intact(result, folder / "full.safetensors", has_new_branch=name.startswith(ADD))
    peak = found["peak"] / GB
    sizes = (size_of(source) / GB, size_of(result) / GB, peak)
    shutil.rmtree(result) if result.is_dir() else result.unlink()
    row = [name, *(f"{size:.2f}" for size in sizes), f"{found['seconds']:.0f}", str(intact)]
    return row, intact and peak <= case.limit


def measure(words: list[str]) -> dict[str, float]:
    """Run the command that `words` begin with in this process: bytes at its peak, seconds."""
    start = time.perf_counter()
    with redirect_stdout(sys.stderr):
        if code := tool_add_control.main(words[1:]) if words[0] == ADD else tool_convert.main(words):
            raise SystemExit(code)
    return {"peak": peak_bytes(), "seconds": time.perf_counter() - start}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model"
    )
    parser.add_argument("--folder", type=Path, help="where to write")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to convert")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """0 when every conversion stays below the limit and gives the weights that went in."""
    args = parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_random(
            create_meta_model(args.config), folder / "full.safetensors", torch.float32, torch.float32
        )
        print("| conversion | in GB | out GB | peak GB | seconds | intact |\n|---|---|---|---|---|---|")
        good = True
        for case in args.cases:
            row, well = run_case(case, folder, args.config)
            good = good and well
            print(f"| {' | '.join(row)} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
