"""How the learning rate goes over a run: factors of its peak, under the names that diffusers gave them."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.settings import LearningRate

POLYNOMIAL_END = 1e-7  # the rate that a polynomial comes down to, as published


def learning_rate_factor(step: int, rate: LearningRate) -> float:
    """The factor of the peak at optimizer step `step`, counted from 0.

    Raises ValueError for an unknown schedule.
    """
    if rate.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {rate.schedule!r}: use {', '.join(SCHEDULES)}")
    if rate.schedule != "constant" and step < rate.warmup:
        return step / rate.warmup
    done = (step - rate.warmup) / max(1, rate.total - rate.warmup)
    return SCHEDULES[rate.schedule](done, rate)


def _constant(done: float, rate: LearningRate) -> float:
    return 1.0


def _linear(done: float, rate: LearningRate) -> float:
    return max(0.0, 1 - done)


def _cosine(done: float, rate: LearningRate) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _restarts(done: float, rate: LearningRate) -> float:
    return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (rate.cycles * done % 1)))


def _polynomial(done: float, rate: LearningRate) -> float:
    assert rate.peak is not None, "the training module fills in the model's own rate"
    end = POLYNOMIAL_END / rate.peak
    return end + (1 - end) * max(0.0, 1 - done) ** rate.power


SCHEDULES: dict[str, Callable[[float, LearningRate], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
}
