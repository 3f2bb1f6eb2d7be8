"""Ranges hold what was seen, apart for each group of timesteps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.calibration.ranges import MinMaxObserver, watch
from quantize.selection import default_selection, make_plan
from tests.quantize.small_layers import timestep_group
from tests.quantize.small_networks import follow, latents, network


def observed(*inputs):
    made = MinMaxObserver()
    for x in inputs:
        made.see("layer", x)
    return made.ranges("layer")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20), st.randoms())
def test_the_range_is_all_that_was_seen_in_whatever_order(values, random):
    x = torch.tensor(values)
    parts = [x[k : k + 1] for k in random.sample(range(len(x)), len(x))]
    assert observed(*parts, torch.empty(0)) == [(x.min().item(), x.max().item())]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="only numbers can be quantized"):
        observed(torch.tensor([1.0, bad]))


def calibrated(groups=2, timesteps=(10, 900)):
    model = network()
    plan = make_plan(model, default_selection("int8_static"))
    follow(model)
    with watch(model, plan, groups) as calibration:
        for t in timesteps:
            model(latents(), timesteps=torch.tensor([t, t]))
    return plan, calibration


def test_each_group_of_timesteps_has_its_own_range():
    plan, calibration = calibrated()
    whole, early, late = calibration.ranges("mix")
    assert late[1] > 3 * early[1]  # the network is nine times as loud
    assert whole == (min(early[0], late[0]), max(early[1], late[1]))
    assert calibration.all_ranges(plan).keys() == plan.layers.keys() == {"mix", "middle.2"}


def test_a_group_that_was_never_run_has_the_range_over_everything():
    _, calibration = calibrated(timesteps=(900,))
    whole, early, late = calibration.ranges("mix")
    assert early == whole == late


def test_without_groups_there_is_one_range():
    _, calibration = calibrated(groups=None)
    assert len(calibration.ranges("mix")) == 1


def test_what_runs_outside_of_the_schedule_has_one_range():
    calibration = MinMaxObserver(groups=4)
    calibration.see("text", torch.tensor([1.0, 2.0]))
    assert calibration.ranges("text") == [(1.0, 2.0)]
    with timestep_group(1):
        calibration.see("text", torch.tensor([8.0]))
    assert calibration.ranges("text") == [(1, 8), (1, 8), (8, 8), (1, 8), (1, 8)]


def test_the_hooks_go_when_watching_ends():
    model = network()
    plan = make_plan(model, default_selection("int8_static"))
    with pytest.raises(RuntimeError, match="stop"), watch(model, plan):
        raise RuntimeError("stop")
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_layer_that_never_ran_is_named():
    with pytest.raises(ValueError, match="never reached mix"):
        MinMaxObserver().ranges("mix")
