"""Units leave a network without changing what the others compute."""

import copy

import pytest
import torch
from torch import nn

from quantize.prune.units import Cut, Group, counts_in, shrink_, take


class Heads(nn.Module):
    """Four heads of three numbers, each squared and gated; what the units compute is summed by `out`."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.make = nn.Linear(5, 24)
        self.out = nn.Linear(12, 5)

    def forward(self, x):
        value, gate = self.make(x).chunk(2, dim=-1)
        return self.out((value * gate).unflatten(-1, (self.heads, -1)).softmax(-1).flatten(-2))


GROUP = Group(
    "layer", "heads", 4, 3,
    (Cut("make.weight", 0, parts=2), Cut("make.bias", 0, parts=2), Cut("out.weight", 1, reads=True)),
    ("heads",),
)  # fmt: skip
SUBSETS = [[0], [3], [1, 2], [0, 2, 3], [0, 1, 2, 3]]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Heads().requires_grad_(False)


def without(network, gone):
    """The network with zeros where `out` reads the units `gone`."""
    changed = copy.deepcopy(network)
    for unit in gone:
        changed.out.weight[:, 3 * unit : 3 * unit + 3] = 0
    return changed


@pytest.mark.parametrize("kept", SUBSETS, ids=str)
def test_a_unit_that_left_is_one_that_nobody_reads(network, kept):
    x = torch.randn(7, 5)
    expected = without(network, {0, 1, 2, 3} - set(kept))(x)
    shrink_(network, [GROUP], {"layer": kept})
    assert network.heads == len(kept)
    assert (network.make.out_features, network.out.in_features) == (6 * len(kept), 3 * len(kept))
    torch.testing.assert_close(network(x), expected)


def test_shapes_tell_how_many_units_are_left_and_rebuild_the_network(network):
    full = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    pruned = copy.deepcopy(network)
    shrink_(pruned, [GROUP], {"layer": [1, 3]})
    counts = counts_in([GROUP], {name: tuple(v.shape) for name, v in pruned.state_dict().items()}, full)
    assert counts == {"layer": 2}
    with torch.device("meta"):
        empty = Heads()
    shrink_(empty, [GROUP], {"layer": range(counts["layer"])})
    empty.load_state_dict(pruned.state_dict(), assign=True)
    x = torch.randn(2, 5)
    assert torch.equal(empty(x), pruned(x))


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"make.weight": (24, 5)},
        {"make.weight": (13, 5)},
        {"make.weight": (0, 5)},
        {"make.weight": (30, 5)},
        {"make.weight": (12, 6)},
        {"make.weight": (12,), "make.bias": ()},
        {"make.weight": (12, 5), "out.weight": (5, 9)},
    ],
    ids=str,
)
def test_shapes_that_say_nothing_or_contradict_each_other_change_nothing(network, shapes):
    full = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert counts_in([GROUP], shapes, full) == {}


@pytest.mark.parametrize("kept", [[], [4], [-1, 0], [1, 0], [2, 2]], ids=str)
def test_units_that_are_not_there_are_refused(network, kept):
    with pytest.raises(ValueError, match="layer has units 0 to 3: keep some"):
        shrink_(network, [GROUP], {"layer": kept})


def test_learning_goes_on_where_it_was_and_nowhere_else(network):
    network.out.weight.requires_grad_(True)
    shrink_(network, [GROUP], {"layer": [0]})
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["out.weight"]


def test_what_is_taken_holds_no_memory_of_the_rest(network):
    taken = take(network.make.weight, GROUP, GROUP.cuts[0], [1])
    assert taken.untyped_storage().nbytes() == taken.nbytes
    assert torch.equal(taken, network.make.weight[[3, 4, 5, 15, 16, 17]])
