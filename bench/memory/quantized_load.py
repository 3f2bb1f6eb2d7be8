"""Quantized files at the size of Stable Diffusion 1.5: making them, their size, loading them.

    python -m bench.memory.quantized_load
    python -m bench.memory.quantized_load --plans int8_dynamic int8_weight+compact+decoder

Weights are random: sizes, memory and time do not depend on them. Each measurement has a process of its own;
memory is what its resident set reaches above the same process with everything imported, pages of mapped files
included. "Cold" is after the kernel was asked to forget the file, "warm" right after it was read. Loading
maps the file; "read" is the time that summing up every number takes after that. Each of --rounds takes every
file once; seconds are medians over them. Files stay in --folder. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import safe_open

from bench.files import Files, converted
from bench.harness import FOLDER, GB, MB, MIB, ROUNDS, SD15, Bench, BenchFlags, markdown
from bench.processes import apart, peak_bytes
from bench.results import Measurement, Rows
from common.flags import flag

PLANS = ("int8_dynamic", "int8_dynamic+compact+decoder", "int4_group+compact+decoder")
PLAN = "SCHEME[+compact][+decoder]"
FLOAT = "float32 .ckpt, torch.load"
TARGETS = {"int8": 1365, "int4": 760}  # MiB of base and branch that are wanted
CONTROL_TARGET = 362  # MB, the branch alone at int8
OVER_LAYER = 1e9  # bytes that quantizing may take beside the largest layer
LOAD_RATIO, SPEED_RATIO = 1.25, 10  # peak of loading over the file; times faster than torch.load
CONTROL = "control_model."
READ_PIECE = 1 << 24
PAGES = ("cold", "warm")


@dataclass(frozen=True)
class QuantizedLoadFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config",)

    config: Path = flag(SD15, "yaml of the model")
    folder: Path = flag(FOLDER, "of the files")
    only: tuple[str, ...] = flag(PLANS, "what to make and load", "--only", "--plans", metavar=PLAN)
    rounds: int = flag(1, ROUNDS)


def make(files: Files, plan: str) -> dict[str, float]:
    """Quantize in this process: seconds, bytes at the peak, and those of the largest layer."""
    from ldm.config import create_meta_model

    scheme, path = plan.partition("+")[0], plan_path(files, plan)
    largest = max(tensor.nbytes for tensor in create_meta_model(files.config).state_dict().values())
    path.unlink(missing_ok=True)
    before, start = peak_bytes(), time.perf_counter()
    files.make_quantized(scheme, 0, path, **selection(plan))
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes() - before, "largest": largest}


def load(files: Files, plan: str) -> dict[str, float]:
    """Load a plan's file, or the float .ckpt by torch.load: seconds, peak, seconds to read it."""
    from cldm.compressed.quantized import load_quantized_model
    from ldm.config import create_meta_model

    create_meta_model(files.config)  # brings in every import, so that the baseline has them
    before, start = peak_bytes(), time.perf_counter()
    if plan == FLOAT:
        held = list(torch.load(plan_path(files, FLOAT), weights_only=True)["state_dict"].values())
    else:
        model = load_quantized_model(files.config, plan_path(files, plan))
        held = [*model.parameters(), *model.buffers()]
    found = {"seconds": time.perf_counter() - start, "peak": peak_bytes() - before}
    start = time.perf_counter()
    for tensor in held:
        stored = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        stored[:: os.sysconf("SC_PAGE_SIZE")].sum()  # each page once
    return found | {"read": time.perf_counter() - start}


def plan_path(files: Files, plan: str) -> Path:
    """Where the file of a plan such as `int8_dynamic+compact` is kept."""
    if plan == FLOAT:
        return files.weights.with_suffix(".ckpt")
    scheme, _, options = plan.partition("+")
    path = files.quantized(scheme, 0)
    return path.with_stem(f"{path.stem}-{options.replace('+', '-')}") if options else path


def selection(plan: str) -> dict[str, bool]:
    """What is behind the scheme, as switches of `quantize.selection.default_selection`."""
    return dict.fromkeys(plan.split("+")[1:], True)


def bytes_of(path: Path, prefix: str = "") -> int:
    """Of the tensors in a safetensors file whose names begin with `prefix`."""
    with safe_open(path, framework="pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys() if name.startswith(prefix))  # noqa: SIM118


def set_pages(path: Path, pages: str) -> None:
    """cold: ask the kernel to drop the file's pages; warm: have them in memory."""
    with path.open("rb") as file:
        if pages == "cold":
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while pages == "warm" and file.read(READ_PIECE):
            pass


def measure(flags: QuantizedLoadFlags) -> Iterator[Measurement]:
    """Make what is missing, then load in turns: the .ckpt, then each plan, with cold pages and with warm."""
    files = Files(flags.config, flags.folder)
    if not plan_path(files, FLOAT).is_file():
        converted(files.make_weights(), plan_path(files, FLOAT))
    plans = (FLOAT, *flags.only)
    for plan in plans:
        yield from _file_rows(files, plan)
    for _ in range(flags.rounds):
        for plan in plans:
            for pages in PAGES:
                set_pages(plan_path(files, plan), pages)
                found = apart(load, files, plan)
                yield Measurement.of(plan, f"{pages} load", "s", [found["seconds"]])
                yield Measurement.of(plan, f"{pages} read", "s", [found["read"]])
                yield Measurement.of(plan, "load peak", "B", [found["peak"]])


def _file_rows(files: Files, plan: str) -> Iterator[Measurement]:
    path = plan_path(files, plan)
    if plan != FLOAT:
        record = path.with_suffix(".json")  # how it was made is kept with it
        if not (path.is_file() and record.is_file()):
            record.write_text(json.dumps(apart(make, files, plan)))
        for quantity, value in json.loads(record.read_text()).items():
            yield Measurement(plan, f"make {quantity}", value, "s" if quantity == "seconds" else "B")
        yield Measurement(plan, "control", bytes_of(path, CONTROL), "B")
    yield Measurement(plan, "file", path.stat().st_size, "B")


def table(rows: Rows, _: QuantizedLoadFlags) -> str:
    """A row a file, with what was asked for."""
    head = (
        "file", "MiB", "control alone, MB", "made in, s", "peak of making, GB (largest layer + 1 GB)",
        "peak of loading / file", "load cold, s", "faster", "warm, s", "faster", "read cold, s", "warm, s",
    )  # fmt: skip
    cells, base = [], rows[FLOAT]
    for plan, row in rows.items():
        making = [""] * 3
        if plan != FLOAT:
            limit = (row["make largest"].value + OVER_LAYER) / GB
            making = [f"{row['control'].value / MB:.1f}", f"{row['make seconds'].value:.0f}"]
            making.append(f"{row['make peak'].value / GB:.2f} ({limit:.2f})")
        loads = []
        for load in (f"{pages} load" for pages in PAGES):
            seconds = row[load].value
            loads += [f"{seconds:.2f}", f"{base[load].value / seconds:.1f} x"]
        reads = [f"{row[f'{pages} read'].value:.2f}" for pages in PAGES]
        size, peak = row["file"].value, row["load peak"].high
        cells.append([plan, f"{size / MIB:.1f}", *making, f"{peak / size:.2f}", *loads, *reads])
    return markdown(head, cells)


def missed(rows: Rows) -> list[str]:
    """One line for each target that is missed, and by what."""
    checks = {plan: _checks(plan, row, rows[FLOAT]) for plan, row in rows.items() if plan != FLOAT}
    return [
        f"{plan}: {what} {found:.2f}, the bar is {limit:.2f}"
        for plan, pairs in checks.items()
        for what, (found, limit) in pairs.items()
        if not found <= limit
    ]


def _checks(
    plan: str, row: Mapping[str, Measurement], base: Mapping[str, Measurement]
) -> dict[str, tuple[float, float]]:
    """What was found, and what it may be at most, by what it is."""
    value, kind = {name: one.value for name, one in row.items()}, plan[:4]
    checks = {
        "peak of making, GB": (value["make peak"] / GB, (value["make largest"] + OVER_LAYER) / GB),
        "peak of loading over the file": (row["load peak"].high / value["file"], LOAD_RATIO),
    }
    for load in (f"{pages} load" for pages in PAGES):
        checks[f"seconds of a {load}"] = (value[load], base[load].value / SPEED_RATIO)
    if kind in TARGETS:
        checks["MiB of file"] = (value["file"] / MIB, TARGETS[kind])
    if kind == "int8":
        checks["control alone, MB"] = (value["control"] / MB, CONTROL_TARGET)
    return checks


main = Bench("bench.memory.quantized_load", __doc__, QuantizedLoadFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
