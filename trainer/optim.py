"""What moves the weights: AdamW in its three forms, its learning rate, and the average of what it makes.

AdamW is torch's, one with states of 8 bits, or DeepSpeed's on the host. The average is our own, not
Lightning's `WeightAveraging`: that one copies the whole model, frozen parts too (5.7 GB of Stable Diffusion
1.5), and puts the average where a checkpoint has its weights, so that older checkpoints would not resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.util import get_obj_from_str
from trainer.settings import LearningRate, Optimization

# Of packages that are used where they are there and are not asked for otherwise.
SMALL_ADAM, HOST_ADAM = "bitsandbytes.optim.AdamW8bit", "deepspeed.ops.adam.DeepSpeedCPUAdam"


def make_optimizer(
    parameters: Iterable[nn.Parameter], rate: float, settings: Optimization, *, offload: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of `settings`, on the host where the run offloads it."""
    betas = (settings.beta1, settings.beta2)
    options = {"lr": rate, "betas": betas, "weight_decay": settings.weight_decay, "eps": settings.epsilon}
    if offload:
        return get_obj_from_str(HOST_ADAM)(list(parameters), adamw_mode=True, **options)
    if settings.use_8bit_adam:
        return get_obj_from_str(SMALL_ADAM)(list(parameters), **options)
    return torch.optim.AdamW(list(parameters), **options)


def make_schedule(
    optimizer: torch.optim.Optimizer, rate: LearningRate
) -> torch.optim.lr_scheduler.LRScheduler:
    """The course of `optimizer`'s learning rate, as diffusers draws it."""
    from transformers import get_scheduler

    own = {"cosine_with_restarts": {"num_cycles": rate.cycles}, "polynomial": {"power": rate.power}}
    total = max(rate.total, rate.warmup + 1)  # a run may end while it warms up
    return get_scheduler(rate.schedule, optimizer, rate.warmup, total, own.get(rate.schedule))


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
            trained = value.detach().clone()  # swapped, not copied: the run may go on behind it
            value.copy_(self.shadow[name])
            self.shadow[name] = trained
