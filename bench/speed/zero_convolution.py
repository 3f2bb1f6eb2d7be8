"""Does a layer of zeros learn? Prints the gradients of zero convolutions and of what lies in front of them.

    python -m bench.speed.zero_convolution

First a single zero convolution behind an ordinary one, with the formula of docs/zero-convolution.md beside
autograd; then a small ControlNet on a U-Net that stands for a trained one. It takes seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import markdown
from cldm.cldm import ControlledUnetModel, ControlNet
from common.shell import Parser, run_command
from ldm.modules.layers import zero_module

SEED = 0
LEARNING_RATE = 0.1  # plain gradient descent: the first step is -0.1 times the gradients shown
SHAPE = {
    "in_channels": 4, "model_channels": 8, "channel_mult": [1, 2], "attention_resolutions": [1],
    "num_res_blocks": 1, "num_heads": 2, "context_dim": 8, "num_groups": 4,
}  # fmt: skip
ZERO, COPY = "zero convolutions", "copied encoder"
HINT, HINT_ZERO = "hint block, the rest", "hint block, last convolution (zero too)"
Gradients = dict[str, float]  # layer group -> largest absolute gradient


def single(steps: int) -> tuple[list[Gradients], float]:
    """Gradients before each step of a zero convolution behind an ordinary one, to fit noise.

    Also the largest difference at step 0 between autograd and the formula dL/dW = sum_p delta_p f_p^T.
    """
    front, zero = nn.Conv2d(3, 8, 3, padding=1), zero_module(nn.Conv2d(8, 4, 1))
    x, target = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)

    def loss() -> Tensor:
        return F.mse_loss(zero(front(x)), target)

    features = front(x)
    delta = 2 * (zero(features) - target) / target.numel()  # [b, o, h, w], the gradient of the output
    by_hand = torch.einsum("bohw,bihw->oi", delta, features)
    (by_autograd,) = torch.autograd.grad(loss(), zero.weight)
    error = (by_hand - by_autograd[:, :, 0, 0]).abs().max().item()
    return _descend(loss, {"zero convolution": zero, "convolution in front": front}, steps), error


def controlnet(steps: int) -> list[Gradients]:
    """Gradients before each step of a small ControlNet that starts as a copy of its U-Net's encoder."""
    unet, branch = ControlledUnetModel(**SHAPE), ControlNet(**SHAPE)
    for parameter in unet.parameters():  # a fresh U-Net ends in zeros itself, a trained one does not
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    copied = unet.state_dict()
    branch.load_state_dict({name: copied.get(name, value) for name, value in branch.state_dict().items()})
    unet.requires_grad_(False)
    x, noise, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2, 3, 64, 64)
    text, t = torch.randn(2, 5, 8), torch.tensor([100, 700])

    def loss() -> Tensor:
        return F.mse_loss(unet(x, t, text, control=branch(x, hint, t, text)), noise)

    *rest, last = branch.input_hint_block
    zero = nn.ModuleList([branch.zero_convs, branch.middle_block_out])
    copy = nn.ModuleList([branch.time_embed, branch.input_blocks, branch.middle_block])
    groups = {ZERO: zero, COPY: copy, HINT_ZERO: last, HINT: nn.ModuleList(rest)}
    return _descend(loss, groups, steps)


def _descend(loss: Callable[[], Tensor], groups: Mapping[str, nn.Module], steps: int) -> list[Gradients]:
    parameters = [p for module in groups.values() for p in module.parameters()]
    optimizer, rows = torch.optim.SGD(parameters, lr=LEARNING_RATE), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        rows.append({name: _largest(module) for name, module in groups.items()})
        optimizer.step()
    return rows


def _largest(module: nn.Module) -> float:
    return max(parameter.grad.abs().max().item() for parameter in module.parameters())


def table(rows: Sequence[Gradients]) -> str:
    """A line a group of layers, a column a step."""
    cells = [[name, *(f"{row[name]:.1e}" if row[name] else "0" for row in rows)] for name in rows[0]]
    return markdown(["largest gradient in", *(f"step {index}" for index in range(len(rows)))], cells)


def main(argv: list[str] | None = None) -> int:
    """Print both tables; nothing is timed, so there are no rows to keep."""
    parser = Parser("python -m bench.speed.zero_convolution", __doc__)
    parser.add_argument("--steps", type=int, default=3, help="of gradient descent (default: %(default)s)")
    args = parser.parse_args(argv)
    return run_command(lambda: report(args.steps))


def report(steps: int) -> str:
    """Both tables; ValueError for a number of steps that shows nothing."""
    if steps < 1:
        raise ValueError(f"steps={steps}: show at least 1")
    torch.manual_seed(SEED)
    rows, error = single(steps)
    first = f"One zero convolution; formula and autograd differ by {error:.0e} at step 0\n\n{table(rows)}\n"
    return f"{first}\nA small ControlNet\n\n{table(controlnet(steps))}"


if __name__ == "__main__":
    raise SystemExit(main())
