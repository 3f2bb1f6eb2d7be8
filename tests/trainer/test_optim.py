"""Learning rates and averages are what their equations say, and impossible settings are refused."""

from typing import get_args

import pytest
import torch

from trainer.optim import MovingAverage, make_schedule
from trainer.settings import LearningRate, Loss, Optimization, Schedule, Transform


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("cycles", [1, 3])
def test_learning_rates_are_those_of_diffusers(name, cycles):
    from diffusers.optimization import get_scheduler

    peak, total, warmup = 1e-3, 40, 8
    ours, theirs = (torch.optim.SGD([torch.zeros(1)], lr=peak) for _ in range(2))
    expected = get_scheduler(
        name, theirs, num_warmup_steps=warmup, num_training_steps=total, power=2.0, num_cycles=cycles
    )
    schedule = make_schedule(ours, LearningRate(peak, name, warmup, cycles, 2.0, total=total))
    for _ in range(total):
        assert schedule.get_last_lr()[0] == pytest.approx(expected.get_last_lr()[0], abs=1e-12)
        for one in (ours, theirs, schedule, expected):
            one.step()


@pytest.mark.parametrize("name", get_args(Schedule))
def test_a_run_may_end_while_its_rate_warms_up(name):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = make_schedule(optimizer, LearningRate(1e-3, name, warmup=4, total=4))
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [1e-3]


def test_the_average_is_the_published_recursion_and_can_stand_in():
    value = {"w": torch.tensor([0.0])}
    average = MovingAverage(value, 0.5)
    expected = 0.0
    for step, new in enumerate([1.0, 2.0, 4.0, 8.0], start=1):
        value["w"].fill_(new)
        average.update(value)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * new
    assert average.shadow["w"].item() == pytest.approx(expected)
    with average.in_place_of(value):
        assert value["w"].item() == pytest.approx(expected)
    assert value["w"].item() == 8.0
    assert average.shadow["w"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Loss(snr_gamma=0), "snr_gamma=0: it must be above 0"),
        (lambda: Loss(noise_offset=-1), "noise_offset=-1"),
        (lambda: Loss(seed=-1), "seeds are 0 or above"),
        (lambda: Transform(resolution=100), "multiple of 64"),
        (lambda: Transform(empty_prompts=2), "between 0 and 1"),
        (lambda: LearningRate(peak=0.0), "learning rate 0"),
        (lambda: LearningRate(warmup=-1), "warm-up steps"),
        (lambda: Optimization(ema_decay=1.0), "ema_decay"),
        (lambda: Optimization(max_grad_norm=-1.0), "max_grad_norm"),
    ],
)
def test_impossible_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
