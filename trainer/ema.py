"""The moving average of what learns: smoother than the last step, and what a run hands out in the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


class MovingAverage:
    """Average of named tensors, each step new * (1 - decay) + old * decay; quicker at the start of a run."""

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take one more step's `values` in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in values.items():
            self.shadow[name] = self.shadow[name].to(value.device).lerp_(value.detach(), 1 - decay)

    @contextmanager
    def in_place_of(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, `values` hold the average; afterwards what they held before."""
        self._swap(values)
        try:
            yield
        finally:
            self._swap(values)

    @torch.no_grad()
    def _swap(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            kept = value.detach().clone()
            value.copy_(self.shadow[name])
            self.shadow[name] = kept

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint stored."""
        self.updates, self.shadow = state["updates"], dict(state["shadow"])
