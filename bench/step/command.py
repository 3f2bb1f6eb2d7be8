"""One denoising step of Stable Diffusion 1.5 with ControlNet: ours beside diffusers and OpenVINO, in one run.

    python -m bench.step --only diffusers ours-int8-dynamic
    python -m bench.step --rounds 3 --results outputs/step.jsonl --peer-python peers/bin/python

All have the same inputs and the same random weights, of one of two kinds (`bench.random_weights`). Each
contender has a process of its own and computes when its turn comes, while the others stand still. The first
run of each is not timed: it packs weights. Nor is the first of each turn (--settle): it finds cold caches,
which steps of one picture do not. With --results the rounds of several runs add up in one file. Peak memory
is the process's resident set, pages of mapped files included. Weights and converted models stay in --folder,
14 GB for all contenders and one kind of weights. --only takes contenders of the CPU:
{cpu};
and with --device cuda:
{gpu}.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from bench.harness import GIB, PERCENT, SPREAD, Bench, Column, chosen, table_of
from bench.inputs import relative_error
from bench.processes import ProcessOptions, Worker, apart
from bench.results import Measurement, Rows
from bench.step.contenders import CPU, EQUAL, GPU, SAME, contenders_on, load, prepare_files
from bench.step.setting import Setting
from common.shell import say

MEDIAN = "median (min..max)"
COLUMNS = (
    Column(f"wall s, {MEDIAN}", "wall", SPREAD),
    Column(f"CPU s, {MEDIAN}", "cpu", SPREAD),
    Column("faster", "wall", ratio="faster"),
    Column("peak loading, GiB", "peak loading", "{high:.2f}", GIB),
    Column("peak step, GiB", "peak", "{high:.2f}", GIB),
    Column("first step, CPU s", "first cpu", "{:.1f}"),
    Column("error, %", "error", "{:.3g}", PERCENT),
    Column("rounds", "wall", "{n}"),
)


def measure(setting: Setting) -> Iterator[Measurement]:
    """Load the contenders, let each run once, then the rounds."""
    names = racing(setting)
    for name in names:
        if not all(path.is_file() for path in contenders_on(setting.device)[name].files(setting)):
            apart(prepare_files, name, setting, options=_options(name, setting))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        outputs, workers = {name: Path(folder, f"{name}.pt") for name in names}, {}
        for name in tqdm(names, desc="first runs", disable=None):
            worker = Worker(load, name, setting, outputs[name], options=_options(name, setting, quiet=True))
            workers[name] = stack.enter_context(worker)
            yield Measurement.of(name, "peak loading", "B", [worker.loading.peak])
            first, _ = worker.run()
            yield Measurement.of(name, "first cpu", "s", [first.cpu])
            yield Measurement.of(name, "peak", "B", [first.peak])
        yield from errors(outputs)
        for _ in tqdm(range(setting.rounds), desc="rounds", disable=None):
            for name, worker in workers.items():
                cost, _ = worker.run(setting.settle)
                yield Measurement.of(name, "wall", "s", [cost.wall])
                yield Measurement.of(name, "cpu", "s", [cost.cpu])
                yield Measurement.of(name, "peak", "B", [cost.peak])


def racing(setting: Setting) -> list[str]:
    """The contenders that take part, in the registry's order; those that cannot are named on stderr.

    Raises ValueError for an unknown one, and where none is left.
    """
    known, names = contenders_on(setting.device), []
    for name in chosen(setting.only, known, "contender"):
        if reason := known[name].absent(setting):
            say(f"{name} is left out: {reason}")
        else:
            names.append(name)
    if not names:
        raise ValueError("no contender is left to measure")
    return names


def _options(name: str, setting: Setting, *, quiet: bool = False) -> ProcessOptions:
    contender = contenders_on(setting.device)[name]
    python = setting.peer_python if setting.peer_python and contender.needs else Path(sys.executable)
    return ProcessOptions(python, setting.threads, contender.environment, setting.device, quiet)


def errors(outputs: Mapping[str, Path]) -> Iterator[Measurement]:
    """Each output's error relative to the first one's; what should be equal and is not is said on stderr."""
    loaded = {name: torch.load(path) for name, path in outputs.items()}
    base, *_ = loaded  # the first float contender, if one takes part
    if base not in SAME and len(loaded) > 1:
        say("no float contender takes part: errors are not measured")
        return
    for name, output in loaded.items():
        error = relative_error(output, loaded[base])
        if name in SAME and not error <= EQUAL:
            say(f"{name} differs from {base} by {error:.1e}: they do not compute the same")
        yield Measurement(name, "error", error, "of its size")


def table(rows: Rows, setting: Setting) -> str:
    """A row for each contender, those of earlier runs too."""
    rows = {name: rows[name] for name in contenders_on(setting.device) if name in rows}
    return table_of(COLUMNS, "contender")(rows)


ABOUT = __doc__.format(cpu=", ".join(CPU), gpu=", ".join(GPU))
main = Bench("bench.step", ABOUT, Setting, measure, table, adds_up=True).run
