"""What a unit is worth: by its weights, and by what the answer loses without it."""

import pytest
import torch
from torch import nn

from quantize.calibration.calls import RecordedCall
from quantize.prune.importance import keep_best, magnitude, taylor
from quantize.prune.units import Cut, Group

UNITS = 6


def group(name="hidden", count=UNITS, **options):
    cuts = (Cut("0.weight", 0), Cut("0.bias", 0), Cut("2.weight", 1, reads=True))
    return Group(name, "mlp", count, 1, cuts, **options)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, UNITS), nn.GELU(), nn.Linear(UNITS, 3))


def calls(count=8):
    return [RecordedCall((torch.randn(4, 5),), {}, None) for _ in range(count)]


def test_magnitude_is_the_squares_of_all_that_belongs_to_a_unit(network):
    make, _, out = network
    expected = (make.weight**2).sum(1) + make.bias**2 + (out.weight**2).sum(0)
    torch.testing.assert_close(magnitude(network, [group()])["hidden"].float(), expected.detach())


def test_taylor_is_how_far_the_answer_moves_without_a_unit(network):
    # The last layer is linear in its units, so that the first order is all there is.
    some = calls(64)
    scores = taylor(network, network, some, [group()], torch.Generator().manual_seed(0))["hidden"]
    with torch.no_grad():
        hidden = torch.cat([network[:2](call.args[0]) for call in some])
        # A whole batch shares one random direction: its answers' changes add up with random signs.
        moved = hidden.square().sum(0) * network[2].weight.square().sum(0) / len(some)
    torch.testing.assert_close(scores.float(), moved, rtol=0.5, atol=0)
    assert scores.argsort().tolist()[-1] == moved.argsort().tolist()[-1]


def test_taylor_sees_a_unit_whose_large_weights_nobody_reads(network):
    with torch.no_grad():
        network[0].weight[2] = 100
        network[2].weight[:, 2] = 0
    scores = taylor(network, network, calls(), [group()], torch.Generator().manual_seed(0))["hidden"]
    assert scores[2] == 0 < scores[[0, 1, 3, 4, 5]].min()
    assert magnitude(network, [group()])["hidden"].argmax() == 2


def test_taylor_leaves_the_network_as_it_was_and_takes_calls_of_inference_mode(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.requires_grad_(False)
    network[0].bias.requires_grad_(True)
    with torch.inference_mode():
        recorded = calls(2)
    taylor(network, network, recorded, [group()], torch.Generator().manual_seed(0))
    assert [value.requires_grad for value in network.parameters()] == [False, True, False, False]
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_groups_that_no_call_passes_have_no_score(network):
    network.idle = nn.Linear(UNITS, 2)
    idle = Group("idle", "mlp", UNITS, 1, (Cut("idle.weight", 1, reads=True),))
    forward = nn.Sequential(*network[:3])
    scores = taylor(forward, network, calls(), [group(), idle], torch.Generator().manual_seed(0))
    assert scores.keys() == {"hidden"}


@pytest.mark.parametrize(("share", "left"), [(0, 6), (0.1, 6), (1 / 6, 5), (0.5, 3), (0.99, 1)])
def test_the_best_of_each_group_stay_in_order(share, left):
    scores = {"hidden": torch.tensor([3.0, 1, 6, 2, 5, 4])}
    kept = keep_best(scores, [group()], share)["hidden"]
    assert kept == sorted(scores["hidden"].argsort(descending=True)[:left].tolist())


def test_one_order_over_all_groups_takes_from_the_idle_ones():
    scores = {"a": torch.arange(1.0, 5), "b": torch.arange(10.0, 14)}
    groups = [group("a", 4), group("b", 4)]
    assert keep_best(scores, groups, 0.25, "global") == {"a": [2, 3], "b": [0, 1, 2, 3]}
    assert keep_best(scores, groups, 0.75, "global") == {"a": [3], "b": [2, 3]}  # one stays everywhere


def test_kernels_get_the_multiple_they_like():
    scores = {"hidden": torch.arange(64.0)}
    assert len(keep_best(scores, [group(count=64, multiple=16)], 0.3)["hidden"]) == 48
    assert len(keep_best(scores, [group(count=64, multiple=16)], 0.9)["hidden"]) == 16


def test_equal_units_go_from_the_end():
    assert keep_best({"hidden": torch.ones(UNITS)}, [group()], 0.5)["hidden"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"share": 1.0}, "a share of 1.0 cannot go"), ({"share": -0.1}, "a share of -0.1 cannot go")],
)
def test_a_wrong_share_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        keep_best({"hidden": torch.ones(UNITS)}, [group()], **changes)


def test_nan_has_no_importance(network):
    with torch.no_grad():
        network[0].weight[1, 1] = torch.nan
    with pytest.raises(ValueError, match="hidden: a weight is not finite"):
        magnitude(network, [group()])
    scores = taylor(network, network, calls(1), [group()], torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="hidden: its units have no finite importance"):
        keep_best(scores, [group()], 0.5)
