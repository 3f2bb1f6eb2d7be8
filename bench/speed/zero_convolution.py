"""Does a layer of zeros learn? Prints the gradients of zero convolutions and of what lies in front of them.

    python -m bench.speed.zero_convolution

First a single zero convolution behind an ordinary one, with the formula of docs/zero-convolution.md beside
autograd; then a small ControlNet on a U-Net that stands for a trained one. It takes seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import markdown
from cldm.cldm import ControlledUnetModel, ControlNet
from common.shell import Parser, run_command
from ldm.modules.layers import zero_module

SEED, STEPS = 0, 3
LEARNING_RATE = 0.1  # plain gradient descent: the first step is -0.1 times the gradients shown
SHAPE = {
    "in_channels": 4, "model_channels": 8, "channel_mult": [1, 2], "attention_resolutions": [1],
    "num_res_blocks": 1, "num_heads": 2, "context_dim": 8, "num_groups": 4,
}  # fmt: skip
Gradients = dict[str, list[float]]  # group of layers -> the largest absolute gradient before each step


def single() -> tuple[Gradients, float]:
    """Gradients of a zero convolution behind an ordinary one, to fit noise.

    Also the largest difference at step 0 between autograd and the formula dL/dW = sum_p delta_p f_p^T.
    """
    front, zero = nn.Conv2d(3, 8, 3, padding=1), zero_module(nn.Conv2d(8, 4, 1))
    x, target = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    loss = lambda: F.mse_loss(zero(front(x)), target)  # noqa: E731
    delta = 2 * (zero(front(x)) - target) / target.numel()  # [b, o, h, w], the gradient of the output
    by_hand = torch.einsum("bohw,bihw->oi", delta, front(x))
    (by_autograd,) = torch.autograd.grad(loss(), zero.weight)
    error = (by_hand - by_autograd[:, :, 0, 0]).abs().max().item()
    return descend(loss, {"zero convolution": zero, "convolution in front": front}), error


def controlnet() -> Gradients:
    """Gradients of a small ControlNet that starts as a copy of its U-Net's encoder."""
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


def descend(loss: Callable[[], Tensor], groups: Mapping[str, nn.Module]) -> Gradients:
    """Gradients before each of STEPS of `loss`, which is of the layers in `groups`."""
    parameters = {name: list(module.parameters()) for name, module in groups.items()}
    optimizer = torch.optim.SGD(sum(parameters.values(), []), lr=LEARNING_RATE)
    found: Gradients = {name: [] for name in groups}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        for name, of in parameters.items():
            found[name].append(max(parameter.grad.abs().max().item() for parameter in of))
        optimizer.step()
    return found


def table(found: Gradients) -> str:
    """A line a group of layers, a column a step."""
    cells = [[name, *(f"{one:.1e}" if one else "0" for one in steps)] for name, steps in found.items()]
    return markdown(["largest gradient in", *(f"step {step}" for step in range(STEPS))], cells)


def report() -> str:
    """Both tables; nothing is timed, so there are no rows to keep."""
    torch.manual_seed(SEED)
    found, error = single()
    first = f"One zero convolution; formula and autograd differ by {error:.0e} at step 0\n\n{table(found)}\n"
    return f"{first}\nA small ControlNet\n\n{table(controlnet())}"


def main(argv: list[str] | None = None) -> int:
    """Print both tables; exit codes as `common.shell`."""
    Parser("python -m bench.speed.zero_convolution", __doc__).parse_args(argv)
    return run_command(report)


if __name__ == "__main__":
    raise SystemExit(main())
