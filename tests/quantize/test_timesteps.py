"""The group of timesteps is known inside of the networks that take one, and nowhere else."""

import threading

import pytest
import torch
from torch import nn

from quantize.timesteps import TimestepGroups, current_group, follow_timesteps
from tests.quantize.small_layers import timestep_group


class Timed(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner, self.seen, self.inside = inner, [], lambda: None

    def forward(self, x, hint=None, timesteps=None):
        self.seen.append(current_group())
        self.inside()
        if self.inner is not None:
            self.inner(x, timesteps=timesteps // 2)
            self.seen.append(current_group())
        return x


def followed(groups, inner=None):
    module = Timed(inner)
    follow_timesteps(module, groups, "timesteps")
    return module


@pytest.mark.parametrize(("total", "count"), [(1000, 1), (1000, 4), (1000, 7), (10, 10)])
def test_even_groups_hold_about_as_many_timesteps_each(total, count):
    groups = TimestepGroups.even(total, count)
    sizes = [[groups.of(t) for t in range(total)].count(g) for g in range(count)]
    assert groups.count == count
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1


def test_groups_ascend_with_the_timestep():
    groups = TimestepGroups((250.0, 500.0))
    assert [groups.of(t) for t in (0, 249.9, 250, 499, 500, 999)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("call", [lambda m, t: m(0, None, t), lambda m, t: m(0, timesteps=t)])
def test_calls_are_inside_their_group_however_the_timestep_is_passed(call):
    module = followed(TimestepGroups((100.0,)))
    for t in (5, 500):
        call(module, torch.tensor([t, t]))
        assert current_group() is None
    assert module.seen == [0, 1]


def test_a_network_in_a_network_gives_the_group_back():
    groups = TimestepGroups((100.0, 300.0))
    outer = followed(groups, inner=(inner := followed(groups)))
    outer(0, timesteps=torch.tensor([500]))
    assert outer.seen == [2, 2]
    assert inner.seen == [1]


def test_a_failure_inside_gives_the_group_back():
    module = followed(TimestepGroups())

    def fail():
        raise RuntimeError("inside")

    module.inside = fail
    with timestep_group(7):
        with pytest.raises(RuntimeError, match="inside"):
            module(0, timesteps=torch.tensor([1]))
        assert current_group() == 7


def test_a_batch_that_mixes_groups_is_refused_and_gives_the_group_back():
    module = followed(TimestepGroups((100.0,)))
    with timestep_group(7):
        with pytest.raises(ValueError, match="mixes groups"):
            module(0, timesteps=torch.tensor([1, 500]))
        assert current_group() == 7


def test_removed_handles_follow_no_more():
    module = Timed()
    for handle in follow_timesteps(module, TimestepGroups(), "timesteps"):
        handle.remove()
    module(0, timesteps=torch.tensor([1]))
    assert module.seen == [None]


def test_threads_have_groups_of_their_own():
    seen = []
    with timestep_group(3):
        thread = threading.Thread(target=lambda: seen.append(current_group()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_module_without_timesteps_cannot_be_followed():
    with pytest.raises(ValueError, match="takes no argument 'timesteps'"):
        follow_timesteps(nn.Linear(2, 2), TimestepGroups(), "timesteps")


def test_impossible_groups_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        TimestepGroups((3.0, 1.0))
    with pytest.raises(ValueError, match="1 to 10"):
        TimestepGroups.even(10, 11)
