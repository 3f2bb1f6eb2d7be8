"""Zeros where they are wanted, as many as were asked for, and in training they stay."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantize.prune.masks import has_two_of_four, keep_zeros, two_of_four, use_sparse_kernels, why_dense

EVERYTHING = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[EVERYTHING] * 4), min_size=1, max_size=9))
def test_two_of_four_keeps_the_two_largest_of_every_four(quads):
    weight = torch.tensor(quads, dtype=torch.float32)
    pruned = two_of_four(weight)
    assert has_two_of_four(pruned)
    kept = pruned != 0
    assert torch.equal(pruned[kept], weight[kept])
    for before, after in zip(weight, pruned, strict=True):
        assert torch.equal(before.abs().sort().values[2:], after.abs().sort().values[2:])
    assert torch.equal(two_of_four(pruned), pruned)


def test_the_pattern_is_along_the_inputs():
    pruned = two_of_four(torch.randn(6, 8))
    assert ((pruned.reshape(6, 2, 4) != 0).sum(-1) == 2).all()
    assert not has_two_of_four(torch.ones(2, 4))
    assert not has_two_of_four(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("shape", "words"), [((4, 6), "not groups of 4"), ((4, 4, 3, 3), r"those of nn\.Linear")], ids=str
)
def test_other_shapes_cannot_have_the_pattern(shape, words):
    with pytest.raises(ValueError, match=words):
        two_of_four(torch.ones(shape))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_zeros_stay_zeros_in_training_and_others_learn(optimizer):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    network[0].weight.data = two_of_four(network[0].weight.data)
    before = copy.deepcopy(network.state_dict())
    network.frozen = nn.Linear(2, 2).requires_grad_(False)
    keep_zeros(network, ["0", "frozen"])
    steps = optimizer(network.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        network[:3](torch.randn(16, 8)).square().sum().backward()
        steps.step()
        steps.zero_grad()
    zeros = before["0.weight"] == 0
    assert torch.equal(network[0].weight == 0, zeros)
    assert (network[0].weight != before["0.weight"])[~zeros].all()
    assert (network[2].weight != before["2.weight"]).all()


def test_without_a_gpu_layers_stay_dense_and_it_is_said():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    network[0].weight.data = two_of_four(network[0].weight.data)
    before = network[0].weight
    said = use_sparse_kernels(network, ["0", "1"])
    assert said == "2 layers of 2:4 are computed as dense ones: sparse kernels are for CUDA, not cpu"
    assert network[0].weight is before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_sparse_layers_compute_what_dense_ones_do(dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(320, 640), nn.Linear(640, 320)).requires_grad_(False)
    for layer in network:
        layer.weight.data = two_of_four(layer.weight.data)
    network.to("cuda", dtype)
    if why_dense(network[0].weight):
        pytest.skip(why_dense(network[0].weight))
    x = torch.randn(2, 64, 320, device="cuda", dtype=dtype)
    with torch.inference_mode():
        expected = network(x).float()
        said = use_sparse_kernels(network, ["0", "1"])
        got = network(x).float()
    assert said == "2 layers of 2:4 are computed by sparse kernels, 0 as dense ones"
    assert (got - expected).norm() / expected.norm() < 0.01  # the order of sums in half precision


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_single_precision_stays_dense_on_a_gpu():
    assert "half precision, not float32" in why_dense(torch.zeros(64, 64, device="cuda"))
