"""Quantized files at the size of Stable Diffusion 1.5: making them, their size, loading them.

    python -m bench.memory.quantized_load
    python -m bench.memory.quantized_load --plans int8_dynamic int8_weight+compact+decoder
    python -m bench.memory.quantized_load --sizes

Weights are random: sizes, memory and time do not depend on them. Each measurement has a process of its own;
memory is what its resident set reaches above the same process with everything imported, pages of mapped files
included. "Cold" is after the kernel was asked to forget the file, "warm" right after it was read. Loading
maps the file; "read" is the time that summing up every number takes after that. Each of --rounds takes every
file once; seconds are medians over them. Files stay in --folder. Exit code 1 where a target is missed.

--sizes only says how many bytes files will have, which follows from shapes and plan before there is a weight.
Static layers have a range over all timesteps and one for each of four groups, as `python -m quantize` makes
them.
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
from torch import nn

from bench.files import Files, converted
from bench.harness import FOLDER, GB, MB, MIB, ROUNDS, SD15, Bench, BenchFlags, Column, above, table_of
from bench.processes import apart, peak_bytes
from bench.results import Measurement, Rows
from common.flags import flag

PLANS = ("int8_dynamic", "int8_dynamic+compact+decoder", "int4_group+compact+decoder")
SWITCHES = ("", "+decoder", "+compact", "+compact+decoder")
SIZED = tuple(scheme + switches for scheme in ("int8_static", "int4_group") for switches in SWITCHES)
PLAN = "SCHEME[+compact][+decoder]"
FLOAT = "float32 .ckpt, torch.load"
TARGETS = {"int8": 1365, "int4": 760}  # MiB of base and branch that are wanted
CONTROL_TARGET = 362  # MB, the branch alone at int8
OVER_LAYER = 1e9  # bytes that quantizing may take beside the largest layer
LOAD_RATIO, SPEED_RATIO = 1.25, 10  # peak of loading over the file; times faster than torch.load
CONTROL = "control_model."
RANGES = ((0.0, 1.0),) * 5  # of a static layer; their number counts
READ_PIECE = 1 << 24  # bytes
PAGES = ("cold", "warm")  # of the file, in the kernel's memory
SIZES = (Column("MiB", "file", "{:.1f}", MIB), Column("control alone, MB", "control", "{:.1f}", MB))
COLUMNS = (
    *SIZES,
    Column("made in, s", "make seconds", "{:.0f}"),
    Column("peak of making, GB", "make peak", unit=GB),
    Column("largest layer, GB", "make largest", unit=GB),
    Column("peak of loading / file", "load peak / file", "{high:.2f}"),
    Column("load cold, s", "cold load"),
    Column("faster", "cold load", ratio="faster"),
    Column("warm, s", "warm load"),
    Column("faster", "warm load", ratio="faster"),
    Column("read cold, s", "cold read"),
    Column("warm, s", "warm read"),
)


@dataclass(frozen=True)
class QuantizedLoadFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config",)

    config: Path = flag(SD15, "yaml of the model")
    folder: Path = flag(FOLDER, "of the files")
    only: tuple[str, ...] = flag((), "files (default: some of interest)", "--only", "--plans", metavar=PLAN)
    rounds: int = flag(1, ROUNDS)
    sizes: bool = flag(False, "say the files' sizes, make nothing")


def make(files: Files, plan: str) -> dict[str, float]:
    """Quantize in this process: seconds, bytes at the peak, and those of the largest layer."""
    from ldm.config import create_meta_model

    scheme, path = plan.partition("+")[0], plan_path(files, plan)
    largest = max(tensor.nbytes for tensor in create_meta_model(files.config).state_dict().values())
    path.unlink(missing_ok=True)  # making is what is measured
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


def sizes(model: nn.Module, plan: str) -> Iterator[Measurement]:
    """Bytes of a plan's file, and of the control branch's tensors in it."""
    from common.safetensors_header import nbytes
    from quantize.calibration.ranges import static_layers
    from quantize.files.write import Content, file_size, layout_of, specs_of
    from quantize.selection import default_selection, make_plan

    chosen = make_plan(model, default_selection(plan.partition("+")[0], **selection(plan)))
    ranges = dict.fromkeys(static_layers(chosen), RANGES)
    layout = layout_of(model, specs_of(model, chosen, ranges), narrow=chosen.narrow)
    branch = sum(nbytes(*entry) for name, entry in layout.items() if name.startswith(CONTROL))
    yield Measurement(plan, "file", file_size(model, Content(chosen), ranges), "B")
    yield Measurement(plan, "control", branch, "B")


def set_pages(path: Path, pages: str) -> None:
    """cold: ask the kernel to drop the file's pages; warm: have them in memory."""
    with path.open("rb") as file:
        if pages == "cold":
            os.fsync(file.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while pages == "warm" and file.read(READ_PIECE):
            pass


def measure(flags: QuantizedLoadFlags) -> Iterator[Measurement]:
    """Sizes by shapes; or make what is missing, then load in turns, with cold pages and with warm."""
    from ldm.config import create_meta_model

    model, files = create_meta_model(flags.config), Files(flags.config, flags.folder)
    if flags.sizes:
        for plan in flags.only or SIZED:
            yield from sizes(model, plan)
        return
    if not plan_path(files, FLOAT).is_file():
        converted(files.make_weights(), plan_path(files, FLOAT))
    plans = (FLOAT, *(flags.only or PLANS))
    for plan in plans:
        yield from _file_rows(files, plan, model)
    for _ in range(flags.rounds):
        for plan in plans:
            for pages in PAGES:
                yield from _load_rows(files, plan, pages)


def _file_rows(files: Files, plan: str, model: nn.Module) -> Iterator[Measurement]:
    path = plan_path(files, plan)
    if plan != FLOAT:
        record = path.with_suffix(".json")  # how it was made is kept with it
        if not (path.is_file() and record.is_file()):
            record.write_text(json.dumps(apart(make, files, plan)))
        for quantity, value in json.loads(record.read_text()).items():
            yield Measurement(plan, f"make {quantity}", value, "s" if quantity == "seconds" else "B")
        yield from sizes(model, plan)
    yield Measurement(plan, "file", path.stat().st_size, "B")


def _load_rows(files: Files, plan: str, pages: str) -> Iterator[Measurement]:
    path = plan_path(files, plan)
    set_pages(path, pages)
    found = apart(load, files, plan)
    yield Measurement.of(plan, f"{pages} load", "s", [found["seconds"]])
    yield Measurement.of(plan, f"{pages} read", "s", [found["read"]])
    yield Measurement.of(plan, "load peak / file", "of its size", [found["peak"] / path.stat().st_size])


def table(rows: Rows, flags: QuantizedLoadFlags) -> str:
    """A row a file."""
    return table_of(SIZES if flags.sizes else COLUMNS, "file")(rows)


def missed(rows: Rows) -> list[str]:
    """One line for each target that is missed, and by what."""
    measured = {plan: row for plan, row in rows.items() if plan != FLOAT and "make peak" in row}
    return [line for plan, row in measured.items() for line in _missed(plan, row, rows[FLOAT])]


def _missed(plan: str, row: Mapping[str, Measurement], base: Mapping[str, Measurement]) -> list[str]:
    value, kind = {name: one.value for name, one in row.items()}, plan[:4]
    making = (value["make largest"] + OVER_LAYER) / GB
    found = above(plan, "peak of making, GB", value["make peak"] / GB, making)
    found += above(plan, "peak of loading over the file", row["load peak / file"].high, LOAD_RATIO)
    for load in (f"{pages} load" for pages in PAGES):
        found += above(plan, f"seconds of a {load}", value[load], base[load].value / SPEED_RATIO)
    if kind in TARGETS:
        found += above(plan, "MiB of file", value["file"] / MIB, TARGETS[kind])
    if kind == "int8":
        found += above(plan, "MB of the control branch", value["control"] / MB, CONTROL_TARGET)
    return found


main = Bench("bench.memory.quantized_load", __doc__, QuantizedLoadFlags, measure, table, missed).run

if __name__ == "__main__":
    raise SystemExit(main())
