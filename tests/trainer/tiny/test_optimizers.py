"""The optimizer of the U-Net's matrices: what it moves, how far, and that it resumes exactly."""

import pytest
import torch
from torch import nn

from trainer.tiny.optimizers import MatrixSteps, adamw, set_rate


def network(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.SiLU(), nn.Conv2d(8, 4, 1))
    return nn.ModuleDict({"inner": layers, "out": nn.Conv2d(4, 2, 3)}).to(memory_format=memory_format)


def take(net, optimizer, seed):
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    net["out"](net["inner"](x)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_direction_of_an_inner_kernel_moves_as_far(memory_format):
    net = network(memory_format)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = MatrixSteps(net, 1e-3)
    take(net, optimizer, 1)
    for name, value in net.named_parameters():
        moved = value.detach() - before[name]
        assert moved.abs().max() > 0, name
        if name.startswith("inner") and moved.ndim == 4:
            lengths = torch.linalg.svdvals(moved.flatten(1)) / optimizer.muon.param_groups[0]["lr"]
            # Five Newton-Schulz steps bring singular values to 1 within about a third, and decay is small.
            assert lengths.min() > 0.6
            assert lengths.max() < 1.4
        else:
            assert moved.abs().max() < 1.1e-3  # AdamW's first step: the learning rate for each number


def test_the_memory_format_changes_nothing():
    nets = [network(), network(torch.channels_last)]
    for net in nets:
        optimizer = MatrixSteps(net, 1e-3)
        for seed in range(3):
            take(net, optimizer, seed)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)  # its products are in bfloat16


def test_a_resumed_run_goes_on_to_the_bit():
    whole, halves = network(), network()
    optimizer = MatrixSteps(whole, 1e-3)
    for seed in range(4):
        take(whole, optimizer, seed)
    first = MatrixSteps(halves, 1e-3)
    for seed in range(2):
        take(halves, first, seed)
    second = MatrixSteps(halves, 1e-3)
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        take(halves, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


@pytest.mark.parametrize("make", [adamw, MatrixSteps])
def test_rates_keep_their_proportion(make):
    optimizer = make(network(), 1e-3)
    before = [group["lr"] for group in optimizer.param_groups]
    set_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(rate / 2) for rate in before]
