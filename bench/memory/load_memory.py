"""How much memory does loading take, beside the size of the weights?

    python -m bench.memory.load_memory --forms safetensors ckpt fp16

Writes files of random weights at the size of a yaml (SD1.5: 5.7 GB), without holding them, then loads each in
a fresh process with `load_model` and reads every parameter once. The peak counts the pages mapped from the
file too, and what a process has with everything imported is taken from it. Linux only; needs twice the
weights' size in --folder. Exit code 1 where a form takes more than {limit} times its weights, or weights that
were not written are read. Forms: {forms}.
"""

from __future__ import annotations

import math
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
from common.flags import flag

LIMIT = 1.15  # peak over the weights' size that loading must stay below
SUM_PIECE = 1 << 20  # values summed at a time
# name -> dtype of the file, dtype to load in, suffix
FORMS = {
    "safetensors": (torch.float32, torch.float32, ".safetensors"),
    "ckpt": (torch.float32, torch.float32, ".ckpt"),
    "fp16": (torch.float16, torch.float32, ".safetensors"),
    "fp16-kept": (torch.float16, torch.float16, ".safetensors"),
    "to-fp16": (torch.float32, torch.float16, ".safetensors"),
}
COLUMNS = (
    Column("file GB", "file", unit=GB),
    Column("weights GB", "bytes", unit=GB),
    Column("peak GB", "peak", unit=GB),
    Column("over baseline GB", "over", unit=GB),
    Column("/ weights", "ratio", "{:.3f}"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("intact", "intact", "{}"),
)


@dataclass(frozen=True)
class LoadFlags(BenchFlags):
    """The command line."""

    config: Path = flag(SD15, "yaml of the model")
    folder: Path | None = flag(None, "where to write")
    only: tuple[str, ...] = flag(("safetensors", "ckpt"), "what to load", "--only", "--forms", metavar="FORM")


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
    found = {"bytes": size, "peak": peak, "over": over, "ratio": over / size}
    return found | {"seconds": seconds, "intact": intact}


def measure(flags: LoadFlags) -> Iterator[Measurement]:
    """Every form in turn, in a process of its own."""
    from ldm.config import create_meta_model

    parameters = {name for name, _ in create_meta_model(flags.config).named_parameters()}
    asked = chosen(flags.only, FORMS, "form")
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        files = Files(flags.config, Path(folder))
        files.make_weights()
        for form in asked:
            stored, loaded, suffix = FORMS[form]
            path = converted(files.weights, Path(folder, f"weights{suffix}"), stored)
            written = (t.to(stored).to(loaded) for name, t in files.tensors() if name in parameters)
            expected = fingerprint(written)
            yield Measurement(form, "file", path.stat().st_size, "B")
            for quantity, value in apart(load, flags.config, path, loaded, expected).items():
                yield Measurement(form, quantity, value, UNITS.get(quantity, "B"))
            path.unlink()


def missed(rows: Rows) -> list[str]:
    """What is above the limit, and what is not what was written."""
    found = [f"{form}: other weights than written" for form, row in rows.items() if not row["intact"].value]
    for form, row in rows.items():
        found += above(form, "peak over weights", row["ratio"].value, LIMIT)
    return found


UNITS = {"ratio": "", "seconds": "s", "intact": "yes or no"}  # of what is no bytes
ABOUT = __doc__.format(limit=LIMIT, forms=", ".join(FORMS))
main = Bench("bench.memory.load_memory", ABOUT, LoadFlags, measure, table_of(COLUMNS, "form"), missed).run

if __name__ == "__main__":
    raise SystemExit(main())
