"""Ranges hold what was seen, apart for each group of timesteps, and outliers do not set everyone's step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.activations import dequantize_uint8, qparams_of, quantize_uint8
from quantize.calibration.ranges import BINS, RANGES, Calibration, Watched, watch
from quantize.selection import default_selection, make_plan
from quantize.timesteps import timestep_group
from tests.quantize.small_networks import follow, latents, network


def watched(*inputs):
    made = Watched()
    for x in inputs:
        made.see(x)
    return made


def loss(x, ends):
    qparams = qparams_of(*ends)
    return (dequantize_uint8(quantize_uint8(x, qparams), qparams) - x).square().sum().item()


def normal(count=20_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20), st.randoms())
def test_the_histogram_counts_everything_in_whatever_order(values, random):
    x = torch.tensor(values)
    made = watched(*(x[k : k + 1] for k in random.sample(range(len(x)), len(x))))
    assert made.counts.sum() == len(x)
    assert made.ends == (x.min().item(), x.max().item())
    assert made.reach >= x.abs().max()
    width = 2 * made.reach / BINS
    for value in values:
        assert made.counts[((made.centres - value).abs() <= width * 0.51)].sum() >= 1


def test_many_calls_are_worth_one():
    x = normal()
    assert torch.allclose(watched(*x.split(999)).counts.cumsum(0), watched(x).counts.cumsum(0), atol=2)


@pytest.mark.parametrize("rule", RANGES)
def test_a_range_lies_within_what_was_seen(rule):
    x = normal() + 0.5
    low, high = RANGES[rule](watched(x))
    assert x.min() <= low < high <= x.max()


def test_minmax_is_exact():
    x = normal()
    assert RANGES["minmax"](watched(x[:9000], x[9000:])) == (x.min().item(), x.max().item())


def test_the_percentile_leaves_the_tails_out():
    x = normal()
    expected = torch.quantile(x, torch.tensor([1e-4, 1 - 1e-4])).tolist()
    assert RANGES["percentile"](watched(x)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("outlier", [1.0, 30.0, -30.0, 3000.0])
def test_mse_loses_no_more_than_the_exact_ends(outlier):
    x = torch.cat([normal(200_000), torch.tensor([outlier])])
    exact, found = (loss(x, RANGES[rule](watched(x))) for rule in ("minmax", "mse"))
    assert found <= exact * 1.01  # a histogram knows values to a quarter of a step
    if abs(outlier) == 30.0:
        assert found < exact * 0.9


@pytest.mark.parametrize("rule", RANGES)
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-42])
def test_a_constant_has_a_range(rule, value):
    qparams = qparams_of(*RANGES[rule](watched(torch.full((50,), value))))
    got = dequantize_uint8(quantize_uint8(torch.tensor([value]), qparams), qparams)
    assert got.item() == pytest.approx(value, rel=1e-6, abs=1e-38)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="only numbers can be quantized"):
        watched(torch.tensor([1.0, bad]))


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
    whole, early, late = calibration.ranges("mix", "minmax")
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
    calibration = Calibration(groups=4)
    calibration.see("text", torch.tensor([1.0, 2.0]))
    assert calibration.ranges("text", "minmax") == [(1.0, 2.0)]
    with timestep_group(1):
        calibration.see("text", torch.tensor([8.0]))
    assert calibration.ranges("text", "minmax") == [(1, 8), (1, 8), (8, 8), (1, 8), (1, 8)]


def test_the_hooks_go_when_watching_ends():
    model = network()
    plan = make_plan(model, default_selection("int8_static"))
    with pytest.raises(RuntimeError, match="stop"), watch(model, plan):
        raise RuntimeError("stop")
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_layer_that_never_ran_is_named():
    with pytest.raises(ValueError, match="never reached mix"):
        Calibration().ranges("mix")


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(RANGES)):
        Calibration().ranges("mix", "median")
