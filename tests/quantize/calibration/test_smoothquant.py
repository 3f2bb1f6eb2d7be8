"""Balancing changes no answer of the float network, and is what a layer with outliers needs."""

import pytest
import torch
from torch import nn

from quantize.arithmetic import sqnr_db
from quantize.calibration.ranges import watch_inputs
from quantize.calibration.smoothquant import AbsMaxObserver, SmoothingPair, channel_scales, smooth_
from quantize.model import quantize_
from quantize.selection import Rule, Selection, make_plan

LOUD = 3  # the channel with outliers
WIDTH = 64


class Net(nn.Module):
    """A norm before two layers, a layer before a layer, and one of which only the first half goes on."""

    def __init__(self, norm=None):
        super().__init__()
        self.norm = norm or nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gated, self.last = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.norm(x)
        value, gate = self.gated(self.first(x)).chunk(2, dim=-1)
        return self.last(value * gate.sigmoid()) + self.second(x)


PAIRS = [
    SmoothingPair("norm", ("first", "second")),
    SmoothingPair("first", ("gated",)),
    SmoothingPair("gated", ("last",), outputs=WIDTH),
]


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    net.norm.weight[LOUD] = 100.0  # as in trained transformers: few channels, a hundred times as large
    return net


def inputs():
    return torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))


def peaks_of(net, pairs=PAIRS, x=None):
    peaks = AbsMaxObserver(net)
    with watch_inputs(net, [pair.layers[0] for pair in pairs], peaks.see):
        net(inputs() if x is None else x)
    return peaks.by_name


@pytest.mark.parametrize("pairs", [[pair] for pair in PAIRS] + [PAIRS], ids=["norm", "layer", "half", "all"])
def test_the_float_network_answers_as_before(net, pairs):
    expected = net(inputs())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert smooth_(net, pairs, peaks_of(net, pairs)) == len(pairs)
    assert any(not torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert sqnr_db(expected, net(inputs())) > 100  # float32 rounds at 150 dB; sums of large numbers lose some


def test_a_convolution_after_a_group_norm_is_balanced_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 1)).requires_grad_(False)
    net[0].weight[LOUD] = 50.0
    x = torch.randn(2, 16, 5, 5)
    expected, pairs = net(x), [SmoothingPair("0", ("1",))]
    smooth_(net, pairs, peaks_of(net, pairs, x))
    assert net[0].weight[LOUD] < 10
    assert sqnr_db(expected, net(x)) > 100


def test_a_layer_with_outliers_in_its_inputs_keeps_more_signal(net):
    expected = net(inputs())

    def quantized(balanced):
        other = Net().requires_grad_(False)
        other.load_state_dict(net.state_dict())
        if balanced:
            smooth_(other, PAIRS[:1], peaks_of(other, PAIRS[:1]))
        plan = make_plan(other, Selection((Rule("first", "int8_dynamic"), Rule("second", "int8_dynamic"))))
        quantize_(other, plan, backend="reference")
        return sqnr_db(expected, other(inputs()))

    assert quantized(balanced=True) > quantized(balanced=False) + 6  # one bit, and much more is usual


def test_half_of_the_loudness_moves():
    scales = channel_scales(torch.tensor([2.0, 8.0]), [torch.tensor([[1.0, 4.0], [0.5, -2.0]])])
    assert torch.allclose(scales, torch.tensor([2.0, 8.0]).sqrt() / torch.tensor([1.0, 4.0]).sqrt())


def test_channels_that_nobody_uses_stay_as_they_are():
    scales = channel_scales(torch.tensor([0.0, 3.0, 5.0]), [torch.tensor([[1.0, 0.0, 2.0]])])
    assert scales[0] == scales[1] == 1.0
    assert scales[2] != 1.0


def test_peaks_are_the_largest_ever_seen_of_each_channel():
    peaks = AbsMaxObserver(nn.ModuleDict({"linear": nn.Linear(2, 1), "conv": nn.Conv2d(2, 1, 1)}))
    peaks.see("linear", torch.tensor([[1.0, -5.0], [2.0, 3.0]]))
    peaks.see("linear", torch.tensor([[-4.0, 0.5]]))
    assert peaks.by_name["linear"].tolist() == [4.0, 5.0]
    peaks.see("conv", torch.arange(8.0).view(1, 2, 2, 2))
    assert peaks.by_name["conv"].tolist() == [3.0, 7.0]
    peaks.see("linear", torch.arange(16.0).view(1, 2, 4, 2))  # positions in two axes, as in a lite branch
    assert peaks.by_name["linear"].tolist() == [14.0, 15.0]


MISTAKES = {
    "no gain": (
        lambda net: smooth_(
            Net(nn.LayerNorm(WIDTH, elementwise_affine=False)), PAIRS[:1], {"first": torch.ones(WIDTH)}
        ),
        "has no gain|without a gain",
    ),
    "widths": (lambda net: smooth_(net, PAIRS[:1], {"first": torch.ones(7)}), "norm gives 64 channels"),
    "NaN": (
        lambda net: AbsMaxObserver(net).see("first", torch.tensor([[torch.nan]])),
        "an input of first has 1 values",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(net, mistake):
    act, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        act(net)


def test_folds_that_were_never_run_stay_as_they_are(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert smooth_(net, PAIRS, {}) == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
