"""Zero convolutions learn from the first step on, what lies in front of them one step later each."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cldm.cldm import ControlledUnetModel, ControlNet
from ldm.modules.layers import zero_module

DOCUMENT = Path(__file__).parents[2] / "docs/zero-convolution.md"
TABLE_ROW = re.compile(r"^\| (?P<name>.*?) \| (?P<cells>[\de0. |+-]+) \|$", re.MULTILINE)
STEPS, LEARNING_RATE = 3, 0.1
SHAPE = {
    "in_channels": 4, "model_channels": 8, "channel_mult": [1, 2], "attention_resolutions": [1],
    "num_res_blocks": 1, "num_heads": 2, "context_dim": 8, "num_groups": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def descend(loss, groups):
    """The largest gradient of each group of layers before each step of plain gradient descent."""
    parameters = {name: list(module.parameters()) for name, module in groups.items()}
    optimizer = torch.optim.SGD(sum(parameters.values(), []), lr=LEARNING_RATE)
    found = {name: [] for name in groups}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        for name, of in parameters.items():
            found[name].append(max(parameter.grad.abs().max().item() for parameter in of))
        optimizer.step()
    return found


def single():
    """One zero convolution behind an ordinary one, to fit noise."""
    front, zero = nn.Conv2d(3, 8, 3, padding=1), zero_module(nn.Conv2d(8, 4, 1))
    x, target = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    return front, zero, x, target


def gradients_of_one():
    front, zero, x, target = single()
    layers = {"zero convolution": zero, "convolution in front": front}
    return descend(lambda: F.mse_loss(zero(front(x)), target), layers)


def gradients_of_a_branch():
    """A small ControlNet that starts as a copy of its U-Net's encoder."""
    unet, branch = ControlledUnetModel(**SHAPE), ControlNet(**SHAPE)
    for parameter in unet.parameters():  # a fresh U-Net ends in zeros itself, a trained one does not
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    copied = unet.state_dict()
    branch.load_state_dict({name: copied.get(name, value) for name, value in branch.state_dict().items()})
    x, noise, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2, 3, 64, 64)
    text, t = torch.randn(2, 5, 8), torch.tensor([100, 700])
    *rest, last = branch.input_hint_block
    groups = {
        "zero convolutions": nn.ModuleList([branch.zero_convs, branch.middle_block_out]),
        "copied encoder": nn.ModuleList([branch.time_embed, branch.input_blocks, branch.middle_block]),
        "hint block, last convolution (zero too)": last,
        "hint block, the rest": nn.ModuleList(rest),
    }
    return descend(lambda: F.mse_loss(unet(x, t, text, control=branch(x, hint, t, text)), noise), groups)


def learning(gradients):
    """The steps at which each group of layers had a gradient."""
    return {name: [step for step, one in enumerate(steps) if one] for name, steps in gradients.items()}


def test_a_zero_convolution_gets_a_gradient_at_once_and_what_is_in_front_of_it_one_step_later():
    assert learning(gradients_of_one()) == {"zero convolution": [0, 1, 2], "convolution in front": [1, 2]}


def test_its_gradient_is_the_documented_formula():
    front, zero, x, target = single()
    loss = F.mse_loss(zero(front(x)), target)
    delta = 2 * (zero(front(x)) - target) / target.numel()  # [b, o, h, w], the gradient of the output
    by_hand = torch.einsum("bohw,bihw->oi", delta, front(x))  # dL/dW = sum_p delta_p f_p^T
    (by_autograd,) = torch.autograd.grad(loss, zero.weight)
    assert (by_hand - by_autograd[:, :, 0, 0]).abs().max() < 1e-6  # fp32 sums of 128 products of about 0.05


def test_a_control_branch_wakes_up_layer_by_layer():
    zeros, copy, hint_zeros, hint = learning(gradients_of_a_branch()).values()
    assert zeros == [0, 1, 2]
    assert copy == hint_zeros == [1, 2]
    assert hint == [2]


def test_the_document_shows_the_same_zeros():
    found = learning(gradients_of_one() | gradients_of_a_branch())
    shown = {
        match["name"]: [step for step, cell in enumerate(match["cells"].split("|")) if cell.strip() != "0"]
        for match in TABLE_ROW.finditer(DOCUMENT.read_text())
    }
    assert shown == found
