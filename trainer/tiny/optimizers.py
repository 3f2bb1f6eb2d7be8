"""What turns gradients into steps: AdamW, or Muon for matrices with AdamW beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ADAMW = {"betas": (0.9, 0.99), "weight_decay": 1e-4, "fused": True}  # fused: a third of the time
MATRIX_SHARE = 8.0  # of the learning rate: tried 20, which unlearned much before it got better
MATRIX_DECAY = 0.01  # torch's own is 0.1
# Of a U-Net, whatever holds it, and a text encoder's tables: a step of Muon would move every row of them.
ENDS = re.compile(r"(^|\.)(time_embed|input_blocks\.0|out|token_embedding|position_embedding)\.")


def adamw(parts: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over all parameters of `parts`."""
    return torch.optim.AdamW([_group(list(parts.parameters()))], lr=lr, **ADAMW)


def set_rate(optimizer: torch.optim.Optimizer | MatrixSteps, rate: float) -> None:
    """Give each group of parameters its share of the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


class MatrixSteps:
    """Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for vectors and the ends of a network.

    Every direction of a matrix's step has the same length, so that what few pictures show, a corner, is not
    drowned by what all of them show, their colours. A convolution is a matrix of [out, in * k * k].
    """

    def __init__(self, parts: nn.Module, lr: float) -> None:
        self.weights = list(_inner_weights(parts))
        inner = {id(weight) for weight in self.weights}  # tensors compare by value: identity tells them apart
        rest = [one for one in parts.parameters() if id(one) not in inner]
        self.views = [nn.Parameter(_as_matrix(weight.detach())) for weight in self.weights]
        group = _group(self.views, MATRIX_SHARE)
        self.muon = torch.optim.Muon([group], lr=lr * MATRIX_SHARE, weight_decay=MATRIX_DECAY)
        self.adamw = torch.optim.AdamW([_group(rest)], lr=lr, **ADAMW)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of both."""
        return self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        """One step of all parameters; Muon's views share their memory."""
        for weight, view in zip(self.weights, self.views, strict=True):
            view.grad = _as_matrix(weight.grad)
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad()
        for one in (*self.weights, *self.views):
            one.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def _group(parameters: list[nn.Parameter], share: float = 1.0) -> dict[str, Any]:
    return {"params": parameters, "share": share}


def _inner_weights(parts: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices and kernels, but for the time embedding and the first and last convolution."""
    for name, weight in parts.named_parameters():
        if weight.ndim > 1 and not ENDS.search(name):
            yield weight


def _as_matrix(weight: Tensor) -> Tensor:
    """[out, ...] -> [out, n] in the order in which memory has them, so that it is a view: any will do."""
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (weight.permute(0, 2, 3, 1) if channels_last else weight).flatten(1)
