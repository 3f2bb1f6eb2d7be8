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
from bench.harness import GB, SD15, Bench, BenchFlags, chosen, markdown
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


def load(config: Path, weights: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load in this process and read every parameter: bytes above the imports, seconds, fingerprint."""
    from cldm.model import load_model
    from ldm.config import create_meta_model

    create_meta_model(config)  # brings in every import, so that the baseline has them
    baseline, start = peak_bytes(), time.perf_counter()
    model = load_model(config, weights, dtype=dtype)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "fingerprint": fingerprint(model.parameters()), "peak": peak_bytes()}
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return found | {"over": found["peak"] - baseline, "bytes": size}


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
            found = apart(load, flags.config, path, loaded)
            yield Measurement(form, "file", path.stat().st_size, "B")
            for quantity, unit in {"bytes": "B", "peak": "B", "over": "B", "seconds": "s"}.items():
                yield Measurement(form, quantity, found[quantity], unit)
            yield Measurement(form, "intact", found["fingerprint"] == expected, "yes or no")
            path.unlink()


def table(rows: Rows, _: LoadFlags) -> str:
    """A row for each form."""
    head = ("form", "file GB", "weights GB", "peak GB", "over baseline GB", "/ weights", "seconds", "intact")
    cells = []
    for form, row in rows.items():
        sizes = (f"{row[quantity].value / GB:.2f}" for quantity in ("file", "bytes", "peak", "over"))
        intact = bool(row["intact"].value)
        cells.append([form, *sizes, f"{_ratio(row):.3f}", f"{row['seconds'].value:.1f}", intact])
    return markdown(head, cells)


def missed(rows: Rows) -> list[str]:
    """What is above the limit, and what is not what was written."""
    over = {form: _ratio(row) for form, row in rows.items() if not _ratio(row) <= LIMIT}
    found = [f"{form}: {ratio:.3f} times the weights, the bar is {LIMIT}" for form, ratio in over.items()]
    return found + [
        f"{form}: other weights than written" for form, row in rows.items() if not row["intact"].value
    ]


def _ratio(row: dict[str, Measurement]) -> float:
    return row["over"].value / row["bytes"].value


ABOUT = __doc__.format(limit=LIMIT, forms=", ".join(FORMS))
main = Bench("bench.memory.load_memory", ABOUT, LoadFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
