"""Calls of networks: recorded from the float model, asked again of the quantized one.

So each network's error is measured by itself, on the inputs that the float network saw: no part answers for
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantize.arithmetic import sqnr_db
from quantize.timesteps import current_group


@dataclass(frozen=True)
class RecordedCall:
    """One call of a network."""

    args: tuple
    kwargs: Mapping[str, Any]
    answer: Any  # a tensor, or lists of them as a branch's residuals


@contextmanager
def record(
    model: nn.Module, names: Sequence[str], wanted: Callable[[RecordedCall], bool] = lambda _: True
) -> Iterator[dict[str, list[RecordedCall]]]:
    """Keep a call of each named network for each group of timesteps, the last one, while the caller runs it.

    wanted: which calls count. Hooks that follow timesteps must come later than this, or the groups are gone
    when it looks.
    """
    last: dict[str, dict[int | None, RecordedCall]] = {name: {} for name in names}
    calls: dict[str, list[RecordedCall]] = {}  # filled at the end, when the last ones are known

    def keep(name: str, _: nn.Module, args: tuple, kwargs: dict[str, Any], answer: Any) -> None:
        if wanted(call := RecordedCall(args, kwargs, answer)):
            last[name][current_group()] = call

    handles = [
        model.get_submodule(name).register_forward_hook(partial(keep, name), with_kwargs=True)
        for name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        calls |= {name: list(by_group.values()) for name, by_group in last.items() if by_group}


def error_db(network: nn.Module, calls: Sequence[RecordedCall]) -> float:
    """Signal over noise of `network`'s answers to recorded calls, all of them together."""
    with torch.inference_mode():
        answers = [network(*call.args, **call.kwargs) for call in calls]
    return sqnr_db(flat(call.answer for call in calls), flat(answers))


def flat(answers: Iterable[Any]) -> Tensor:
    """All numbers of networks' answers, which are tensors or lists of them: float32 [n] on the CPU."""
    return torch.cat([tensor.float().flatten().cpu() for tensor in _tensors(answers)])


def _tensors(answers: Iterable[Any]) -> Iterator[Tensor]:
    for one in answers:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)
