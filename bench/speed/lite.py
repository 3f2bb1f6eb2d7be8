"""What the lite branch saves beside the full one: weights, training memory, time to train and to denoise.

    python -m bench.speed.lite
    python -m bench.speed.lite --config models/tiny.yaml --resolution 128 --rounds 20

Weights are random: time and memory do not depend on them. Every round measures each kind once, one after the
other, so that whatever else the machine does meets all of them; the medians and their ratios are printed as a
table. A training step is loss, gradients and AdamW on ready latents and texts. Training memory is the bytes
of the branch's weights, gradients and optimizer states after such a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.harness import GB, MB, Bench, Column, StepFlags, table_of
from bench.inputs import Inputs, denoising_step
from bench.processes import Run, interleaved
from bench.results import Measurement

if TYPE_CHECKING:
    from omegaconf import DictConfig

PLAIN, FULL, LITE = "U-Net alone", "full", "lite"
FLOOR = "next to nothing"  # a branch of a hundredth of the width: what the U-Net alone costs in training
KINDS = {FULL: "full", LITE: "lite", FLOOR: "lite"}
COLUMNS = (
    Column("weights", "weights", "{:,}"),
    Column("of full", "weights", "{:.1%}", ratio="of first"),
    Column("training memory, MB", "training memory", "{:,.1f}", MB),
    Column("of full", "training memory", "{:.1%}", ratio="of first"),
    Column("training step, GFLOP", "training arithmetic", "{:,.1f}", GB),
    Column("s", "training step", "{:.3f}"),
    Column("full takes", "training step", ratio="faster"),
    Column("denoising step, s", "denoising step", "{:.3f}"),
    Column("of U-Net alone", "denoising step", "{:.3f} x", ratio="of first"),
)


class BranchExchange:
    """One U-Net whose branch is exchanged, and what it is fed with.

    configs: by the kind of branch; they differ in that alone.
    """

    def __init__(self, configs: Mapping[str, DictConfig], size: int, batch: int, device: str) -> None:
        from cldm.model import create_model
        from ldm.config import build_part, model_settings
        from ldm.util import pick_device

        device = pick_device(device)
        self.model = create_model(next(iter(configs.values())))
        del self.model.first_stage_model, self.model.cond_stage_model  # no part of either step
        self.model.to(device).requires_grad_(False)
        for module in self.model.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = False  # of both kinds: recomputing is another trade
        self.branches, self.optimizers = {}, {}
        for name, config in configs.items():
            branch = build_part(model_settings(config)["params"]["control_stage_config"], config).to(device)
            self.branches[name] = branch
            self.optimizers[name] = torch.optim.AdamW(branch.parameters(), lr=1e-5)  # a rate changes no time
        self.inputs = Inputs.random(self.model, size, batch).to(device, torch.float32)

    def training_step(self, name: str) -> None:
        """One step of AdamW on the branch called `name`."""
        from trainer.losses import Noise, control_loss

        self.model.control_model = self.branches[name].requires_grad_(True)
        x0 = self.inputs.x
        cond = {"c_crossattn": [self.inputs.text], "c_concat": [self.inputs.hint]}
        control_loss(self.model, x0, cond, Noise(self.inputs.t, x0.flip(2), x0)).backward()
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=False)  # they stay, to be counted

    def denoising(self, name: str) -> Run:
        """A step of sampling with the branch called `name`, or without one."""
        step = denoising_step(self.model, self.inputs) if name != PLAIN else self._plain_step

        def run() -> None:
            if name != PLAIN:
                self.model.control_model = self.branches[name]
            step()

        return run

    @torch.inference_mode()
    def _plain_step(self) -> None:
        cond = {"c_crossattn": [self.inputs.text], "c_concat": None}
        self.model.apply_model(self.inputs.x, self.inputs.t, cond)

    def weights(self, name: str) -> Measurement:
        """How many numbers the branch called `name` has."""
        count = sum(value.numel() for value in self.branches[name].parameters())
        return Measurement(name, "weights", count, "numbers")

    def training_bytes(self, name: str) -> int:
        """Of weights, gradients and optimizer states, after a training step."""
        branch, optimizer = self.branches[name], self.optimizers[name]
        states = [value for state in optimizer.state.values() for value in state.values()]
        gradients = [value.grad for value in branch.parameters()]
        return sum(tensor.nbytes for tensor in (*branch.parameters(), *gradients, *states))


def kinds(config: Path) -> dict[str, DictConfig]:
    """The yaml's settings with each kind of branch that is compared."""
    from cldm.model import with_branch

    found = {name: with_branch(config, kind) for name, kind in KINDS.items()}
    found[FLOOR].model.params.control_stage_config.params.lite = {"width": 0.01, "kernel": 0}
    return found


def measure(flags: StepFlags) -> Iterator[Measurement]:
    """By kind: seconds of either step, arithmetic of a training step, weights, training bytes."""
    from torch.utils.flop_counter import FlopCounterMode

    exchange = BranchExchange(kinds(flags.config), flags.size, flags.batch, flags.device)
    branches, device = exchange.branches, exchange.inputs.x.device.type
    denoising = {(name, "denoising step"): exchange.denoising(name) for name in (PLAIN, *branches)}
    training = {(name, "training step"): partial(exchange.training_step, name) for name in branches}
    for (name, step), taken in interleaved(denoising | training, flags.rounds, device).items():
        yield Measurement.of(name, step, "s", [cost.wall for cost in taken])
    for name in branches:
        with FlopCounterMode(display=False) as counter:
            exchange.training_step(name)
        yield Measurement(name, "training arithmetic", counter.get_total_flops(), "FLOP")
        yield Measurement(name, "training memory", exchange.training_bytes(name), "B")
        yield exchange.weights(name)


table = table_of(COLUMNS)
main = Bench("bench.speed.lite", __doc__, StepFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
