"""What the lite branch saves beside the full one: weights, training memory, time to train and to denoise.

    python -m bench.speed.lite
    python -m bench.speed.lite --config models/tiny.yaml --resolution 128 --rounds 20

Weights are random: time and memory do not depend on them. Every round measures each kind once, one after the
other, so that whatever else the machine does meets all of them; the medians and their ratios are printed as a
table. A training step is loss, gradients and AdamW on ready latents and texts. Training memory is the bytes
of the branch's weights, gradients and optimizer states after such a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from bench.harness import MB, ROUNDS, SD15, Bench, BenchFlags, markdown
from bench.inputs import Inputs, denoising_step
from bench.processes import Run, interleaved
from bench.results import Measurement, Rows
from common.flags import flag

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

PLAIN, FULL, LITE, WITHIN = "U-Net alone", "full", "lite", "lite, into the encoder"
FLOOR = "next to nothing"  # a branch of a hundredth of the width: what the U-Net alone costs in training
GIGA = 1e9


@dataclass(frozen=True)
class LiteFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config", "size", "batch")

    config: Path = flag(SD15, "yaml of the model")
    size: int = flag(512, "side of the picture, pixels", "--resolution")
    batch: int = flag(1, "pictures a step")
    rounds: int = flag(3, ROUNDS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N")


class BranchExchange:
    """One U-Net whose branch is exchanged, and what it is fed with.

    configs: by the kind of branch; they differ in that alone.
    """

    def __init__(self, configs: Mapping[str, DictConfig], size: int, batch: int, device: str) -> None:
        from cldm.model import create_model
        from ldm.util import pick_device

        device = pick_device(device)
        self.model = create_model(next(iter(configs.values())))
        del self.model.first_stage_model, self.model.cond_stage_model
        self.model.to(device).requires_grad_(False)
        for module in self.model.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = False  # of both kinds: recomputing is another trade
        self.branches = {name: _branch(config).to(device) for name, config in configs.items()}
        self.optimizers = {
            name: torch.optim.AdamW(one.parameters(), lr=1e-5) for name, one in self.branches.items()
        }
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

    def training_bytes(self, name: str) -> int:
        """Of weights, gradients and optimizer states, after a training step."""
        branch, optimizer = self.branches[name], self.optimizers[name]
        states = [value for state in optimizer.state.values() for value in state.values()]
        gradients = [value.grad for value in branch.parameters()]
        return sum(tensor.nbytes for tensor in (*branch.parameters(), *gradients, *states))


def _branch(config: DictConfig) -> nn.Module:
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config

    stage = config.model.params.control_stage_config
    return instantiate_from_config(OmegaConf.to_container(stage, resolve=True))


def kinds(config: Path) -> dict[str, DictConfig]:
    """The yaml's settings with each kind of branch that is compared."""
    from omegaconf import OmegaConf

    from cldm.model import with_branch

    found = {FULL: with_branch(config, "full"), LITE: with_branch(config, "lite")}
    place = "model.params.control_stage_config.params.lite"
    for name, settings in ((WITHIN, {"into_encoder": True}), (FLOOR, {"width": 0.01, "kernel": 0})):
        found[name] = with_branch(config, "lite")
        OmegaConf.update(found[name], place, settings, merge=False, force_add=True)
    return found


def measure(flags: LiteFlags) -> Iterator[Measurement]:
    """By kind: weights, training bytes, arithmetic of a training step, seconds of either step."""
    from torch.utils.flop_counter import FlopCounterMode

    exchange = BranchExchange(kinds(flags.config), flags.size, flags.batch, flags.device)
    device = exchange.inputs.x.device.type
    names = (PLAIN, *exchange.branches)
    training = {(name, "training step"): partial(exchange.training_step, name) for name in names[1:]}
    denoising = {(name, "denoising step"): exchange.denoising(name) for name in names}
    costs = interleaved(training | denoising, flags.rounds, device)
    for (name, step), taken in costs.items():
        yield Measurement.of(name, step, "s", [cost.wall for cost in taken])
    for name, branch in exchange.branches.items():
        with FlopCounterMode(display=False) as counter:
            exchange.training_step(name)
        yield Measurement(name, "weights", sum(value.numel() for value in branch.parameters()), "numbers")
        yield Measurement(name, "training memory", exchange.training_bytes(name), "B")
        yield Measurement(name, "training arithmetic", counter.get_total_flops(), "FLOP")


def table(rows: Rows, _: LiteFlags) -> str:
    """The rows with their ratios to the full branch, and of denoising to the U-Net alone."""
    head = (
        "", "weights", "of full", "training memory, MB", "of full", "training step, GFLOP", "s", "full takes",
        "denoising step, s", "of U-Net alone",
    )  # fmt: skip
    cells, plain, full = [], rows[PLAIN]["denoising step"].value, rows[FULL]
    for name in (PLAIN, *(name for name in rows if name != PLAIN)):
        value = {quantity: one.value for quantity, one in rows[name].items()}
        training = [""] * 7
        if name != PLAIN:
            ratios = {quantity: value[quantity] / full[quantity].value for quantity in full}
            training = [
                f"{value['weights']:,}", f"{ratios['weights']:.1%}",
                f"{value['training memory'] / MB:,.1f}", f"{ratios['training memory']:.1%}",
                f"{value['training arithmetic'] / GIGA:,.1f}", f"{value['training step']:.3f}",
                f"{1 / ratios['training step']:.2f} x",
            ]  # fmt: skip
        step = value["denoising step"]
        cells.append([name, *training, f"{step:.3f}", f"{step / plain:.{2 if name == PLAIN else 3}f} x"])
    return markdown(head, cells)


main = Bench("bench.speed.lite", __doc__, LiteFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
