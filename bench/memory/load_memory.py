"""How much memory does loading take, beside the size of the weights?

Writes files of random weights at the size of a yaml (SD1.5: 5.7 GB), without holding them, then loads each in
a fresh process with `load_model`, reads every parameter once, and prints a table. The peak counts the pages
mapped from the file too. Linux only. Run: python -m bench.memory.load_memory --forms safetensors ckpt fp16
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from cldm.model import load_model
from ldm.config import create_meta_model

ROOT = Path(__file__).parents[2]
GB = 1e9
LIMIT = 1.15  # peak over the weights' size that loading must stay below
KIB = 1024
SUM_PIECE = 1 << 20  # values summed at a time
SEED, SPREAD = 0, 0.02  # of the random weights: as small as trained ones, so that fp16 holds them
STORED_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}  # of the safetensors format
# name -> dtype of the file, dtype to load in, and whether it is a training checkpoint
FORMS = {
    "safetensors": (torch.float32, torch.float32, False),
    "ckpt": (torch.float32, torch.float32, True),
    "fp16": (torch.float16, torch.float32, False),
    "fp16-kept": (torch.float16, torch.float16, False),
    "to-fp16": (torch.float32, torch.float16, False),
}


def write_random(model: nn.Module, path: Path, stored: torch.dtype, loaded: torch.dtype) -> float:
    """Write `model`'s parameters, drawn at random, and its constants as a .safetensors file.

    Returns the fingerprint that a model loaded from the file in the dtype `loaded` must have.
    """
    state = model.state_dict(keep_vars=True)
    header, offset = {}, 0
    for name, tensor in state.items():
        kind = stored if isinstance(tensor, nn.Parameter) else tensor.dtype
        size = tensor.numel() * kind.itemsize
        span = [offset, offset := offset + size]
        header[name] = {"dtype": STORED_NAMES[kind], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to eight bytes
    generator, sums = torch.Generator().manual_seed(SEED), []
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tqdm(state.values(), desc=f"writing {path.name}", unit="tensor"):
            values = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                values = torch.randn(tensor.shape, generator=generator).mul_(SPREAD).to(stored)
                sums.append(_sum(values.to(loaded)))
            file.write(values.contiguous().numpy().data)
    return math.fsum(sums)


def to_ckpt(source: Path, target: Path) -> None:
    """Save the tensors of a .safetensors file as a training checkpoint; they are mapped, so never held."""
    with safe_open(source, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
        torch.save({"state_dict": state, "global_step": 0}, target)


def measure(config: Path, weights: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load `weights` in this process and read every parameter: bytes at the peak, seconds, fingerprint."""
    create_meta_model(config)  # brings in every import, so that the baseline has them
    baseline, start = peak_bytes(), time.perf_counter()
    model = load_model(config, weights, dtype=dtype)
    seconds = time.perf_counter() - start
    fingerprint = math.fsum(_sum(parameter.detach()) for parameter in model.parameters())
    return {
        "baseline": baseline,
        "peak": peak_bytes(),
        "seconds": seconds,
        "fingerprint": fingerprint,
        "bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


def _sum(tensor: Tensor) -> float:
    # In pieces, since a sum in float64 copies its input: the check must not be what needs the memory.
    pieces = tensor.flatten().split(SUM_PIECE)
    return math.fsum(piece.sum(dtype=torch.float64).item() for piece in pieces)


def peak_bytes() -> int:
    """The most memory that this process has had at once, pages of mapped files included."""
    # Not getrusage: its ru_maxrss survives exec, so that a child starts with its parent's peak.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmHWM:"))


def _measure_apart(config: Path, weights: Path, dtype: torch.dtype) -> dict[str, float]:
    name = str(dtype).removeprefix("torch.")
    script = [sys.executable, "-m", "bench.memory.load_memory"]
    command = [*script, "--config", str(config), "--measure", str(weights), name]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(config: Path, folder: Path, forms: list[str]) -> bool:
    """Measure every form in turn, print a row for each; whether all stay below the limit and are intact."""
    model, good = create_meta_model(config), True
    _say("| form | file GB | weights GB | peak GB | over baseline GB | / weights | seconds | intact |")
    _say("|---|---|---|---|---|---|---|---|")
    for form in forms:
        stored, loaded, training = FORMS[form]
        path = folder / "weights.safetensors"
        fingerprint = write_random(model, path, stored, loaded)
        if training:
            to_ckpt(path, folder / "weights.ckpt")
            path.unlink()
            path = folder / "weights.ckpt"
        found, size = _measure_apart(config, path, loaded), path.stat().st_size
        path.unlink()
        over, intact = found["peak"] - found["baseline"], found["fingerprint"] == fingerprint
        ratio = over / found["bytes"]
        good = good and ratio <= LIMIT and intact
        sizes = (size, found["bytes"], found["peak"], over)
        cells = [
            form,
            *(f"{count / GB:.2f}" for count in sizes),
            f"{ratio:.3f}",
            f"{found['seconds']:.1f}",
            intact,
        ]
        _say("| " + " | ".join(map(str, cells)) + " |")
    return good


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  the result


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model"
    )
    parser.add_argument("--folder", type=Path, help="where to write, needs twice the weights' size")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=["safetensors", "ckpt"], help="what to load"
    )
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "DTYPE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """0 when every form stays below the limit and gives the weights that were written."""
    args = parse_args(argv)
    if args.measure:
        path, dtype = args.measure
        _say(json.dumps(measure(args.config, Path(path), getattr(torch, dtype))))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return 0 if run(args.config, Path(folder), args.forms) else 1


if __name__ == "__main__":
    raise SystemExit(main())
