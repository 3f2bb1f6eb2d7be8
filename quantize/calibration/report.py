"""What quantization did to a model, part by part: bytes before and after, and the error it made.

A part is what the first component of its tensors' names says. Its error is measured by itself: the inputs
that the float network saw are given to the quantized one, so that no part answers for another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from quantize.arithmetic import sqnr_db
from quantize.files.write import MIB
from quantize.timesteps import current_group

UNKNOWN = "-"


@dataclass(frozen=True)
class Call:
    """One call of a network: its arguments and what it answered."""

    args: tuple
    kwargs: Mapping[str, Any]
    answer: Any


@dataclass(frozen=True)
class Row:
    """One part. params: numbers in it; before, after: bytes; error_db: signal over noise, None unmeasured."""

    part: str
    params: int
    before: int
    after: int
    error_db: float | None = None


@contextmanager
def record(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Call]]]:
    """Keep a call of each named network for each group of timesteps, the last one, while the caller runs it.

    Hooks that follow timesteps must come later than this, or the groups are gone when it looks.
    """
    last: dict[str, dict[int | None, Call]] = {name: {} for name in names}
    calls: dict[str, list[Call]] = {}

    def recorder(name: str) -> Any:
        def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any], answer: Any) -> None:
            last[name][current_group()] = Call(args, kwargs, answer)

        return keep

    handles = [
        model.get_submodule(name).register_forward_hook(recorder(name), with_kwargs=True) for name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        calls |= {name: list(by_group.values()) for name, by_group in last.items() if by_group}


def error_db(network: nn.Module, calls: Sequence[Call]) -> float:
    """Signal over noise of `network`'s answers to recorded calls, all of them together."""
    with torch.inference_mode():
        pairs = [(call.answer, network(*call.args, **call.kwargs)) for call in calls]
    expected, got = (
        torch.cat([tensor.float().flatten() for answer in answers for tensor in tensors_of(answer)])
        for answers in zip(*pairs, strict=True)
    )
    return sqnr_db(expected, got)


def part_sizes(model: nn.Module, path: str | Path) -> list[Row]:
    """The parts of a float model beside their bytes in the quantized file `path`, the largest first."""
    params, before, after = Counter(), Counter(), Counter()
    for name, tensor in model.state_dict().items():
        part = name.split(".")[0]
        params[part] += tensor.numel()
        before[part] += tensor.nbytes
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a file, not a dict
            after[name.split(".")[0]] += file.get_tensor(name).nbytes
    return [Row(part, params[part], before[part], after[part]) for part, _ in before.most_common()]


def table(rows: Sequence[Row]) -> str:
    """The rows and their sum, aligned, one line each."""
    whole = Row("total", *(sum(getattr(row, name) for row in rows) for name in ("params", "before", "after")))
    head = ("part", "params", "before MiB", "after MiB", "signal/noise dB")
    lines = [head, *(_cells(row) for row in [*rows, whole])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    error = (
        UNKNOWN if row.error_db is None else "exact" if math.isinf(row.error_db) else f"{row.error_db:.1f}"
    )
    return row.part, f"{row.params:,}", f"{row.before / MIB:.2f}", f"{row.after / MIB:.2f}", error


def tensors_of(answer: Any) -> Iterator[Tensor]:
    """The tensors of a network's answer: itself, or those in its lists."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, list | tuple):
        for one in answer:
            yield from tensors_of(one)
