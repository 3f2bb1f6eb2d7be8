"""Which part of a diffusion schedule is being computed: inputs of a layer change along it.

Schedules differ, so ranges of inputs are kept for each group of timesteps (Shang et al. 2023, "Post-training
Quantization on Diffusion Models"; Li et al. 2023, "Q-Diffusion"). The group is set by hooks on the networks
that take a timestep; layers outside of them have none.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# The groups entered and not left yet, the current one last. A context variable: two threads that run two
# requests never see each other's.
_entered: ContextVar[tuple[int | _Unread | None, ...]] = ContextVar("timestep_groups", default=())


@dataclass(frozen=True)
class TimestepGroups:
    """Timesteps cut at `edges`, ascending: group 0 ends below the first, the last begins at the last."""

    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges {self.edges} of timestep groups must ascend")

    @classmethod
    def even(cls, total: int, count: int) -> TimestepGroups:
        """`count` groups of about the same number of the `total` timesteps. ValueError below 1."""
        if not 1 <= count <= total:
            raise ValueError(f"{count} groups of {total} timesteps: ask for 1 to {total}")
        return cls(tuple(total * k / count for k in range(1, count)))

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.edges) + 1

    def of(self, timestep: float) -> int:
        """The group of a timestep, in [0, count)."""
        return bisect_right(self.edges, timestep)  # an edge belongs to the group that it begins

    def of_batch(self, timesteps: Tensor) -> int:
        """The group of all `timesteps`, [b]; ValueError where they are of several."""
        ends = {self.of(end.item()) for end in (timesteps.min(), timesteps.max())}
        if len(ends) > 1:
            raise ValueError(f"a batch of timesteps {timesteps.tolist()} mixes groups: compute them apart")
        return ends.pop()


@dataclass(frozen=True)
class _Unread:
    """The group of timesteps that are on a GPU: to read it the host has to wait until the GPU is idle."""

    groups: TimestepGroups
    timesteps: Tensor

    @cached_property
    def index(self) -> int:
        return self.groups.of_batch(self.timesteps)

    @cached_property
    def there(self) -> Tensor:
        latest = self.timesteps.max().reshape(1)
        passed = [(latest >= edge).int() for edge in self.groups.edges]
        return sum(passed, start=torch.zeros_like(latest, dtype=torch.int32))


def current_group() -> int | None:
    """The group of timesteps that is being computed, None outside of any.

    Of timesteps on a GPU it is read there and then, and a batch that mixes groups is a ValueError.
    """
    group = _current()
    return group.index if isinstance(group, _Unread) else group


def group_on_device() -> Tensor | int | None:
    """As `current_group`, but of timesteps on a GPU as int32 [1] on that GPU, which nobody waits for.

    A batch that mixes groups goes unnoticed then: the latest timestep counts.
    """
    group = _current()
    return group.there if isinstance(group, _Unread) else group


def _current() -> _Unread | int | None:
    """What was entered last, None outside of any group."""
    entered = _entered.get()
    return entered[-1] if entered else None


def follow_timesteps(
    module: nn.Module, groups: TimestepGroups, name: str
) -> tuple[RemovableHandle, RemovableHandle]:
    """Let every call of `module` run inside the group of its timesteps; remove both handles to end that.

    name: of the argument that they are, however it is passed; ValueError where `forward` takes none of it.
    Calls raise ValueError where one batch mixes groups: its inputs share one range. On a GPU nobody looks
    before the group is asked for.
    """
    signature = inspect.signature(module.forward)
    if name not in signature.parameters:
        takes = ", ".join(signature.parameters)
        raise ValueError(f"{type(module).__name__} takes no argument {name!r}, only {takes}")

    def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        before = _entered.get()
        _entered.set((*before, None))  # first: torch calls `leave` even where the rest of this raises
        timesteps = signature.bind(*args, **kwargs).arguments[name]
        group = _Unread(groups, timesteps) if timesteps.is_cuda else groups.of_batch(timesteps)
        _entered.set((*before, group))

    def leave(_: nn.Module, _args: tuple, _result: Any) -> None:
        _entered.set(_entered.get()[:-1])

    return (
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, always_call=True),
    )
