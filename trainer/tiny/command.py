"""Train the tiny model that ships in `models/`: autoencoder, base model, control branch, one after the other.

    python -m trainer.tiny --out runs/tiny                 # all three, hours on two cores
    python -m trainer.tiny --out runs/tiny --stages control --control-steps 8000
    python -m trainer.tiny --out runs/more --from-shipped --stages control     # train the shipped one on
    python -m trainer.tiny --config models/tiny_lite.yaml --out runs/lite --from-shipped --new-branch \
        --stages control --keep 300 1500 6000           # another kind of branch, from its first step on

Every number follows from --seed and the step: data and noise of step n are drawn from generators seeded by n,
so a run that was stopped goes on exactly where its last checkpoint was. Ctrl-C saves first.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cldm.cldm import ControlLDM
from cldm.model import create_model, load_model
from ldm.config import read_config
from ldm.util import pick_device
from trainer.model import load_for_training
from trainer.tiny.data import TinyScenes
from trainer.tiny.export import export, keep_branch
from trainer.tiny.optimizers import set_rate
from trainer.tiny.stages import STAGES, Stage

log = logging.getLogger(__name__)

CONFIG = Path(__file__).parents[2] / "models" / "tiny.yaml"
WARMUP_STEPS = 100
EMA_DECAY = 0.998  # averages about the last 500 steps
MAX_GRAD_NORM = 1.0
SAVE_EVERY_S = 180


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 2 % of `peak` at the last step."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Run:
    """One stage's weights, their average, optimizer and step, with a checkpoint file."""

    def __init__(self, stage: Stage, model: nn.Module, file: Path) -> None:
        self.stage, self.file = stage, file
        self.parts = stage.trained(model)
        self.step = 0
        self.optimizer = stage.optimizer(self.parts, stage.lr)
        self.ema = {name: value.detach().clone() for name, value in self.parts.named_parameters()}
        if file.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.parts.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.step = state["ema"], state["step"]

    def save(self) -> None:
        """Write beside the checkpoint, then rename: a full disk or a second Ctrl-C leaves the old one."""
        partial = self.file.with_suffix(".partial")
        state = {"weights": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "ema": self.ema, "step": self.step}, partial)
        os.replace(partial, self.file)

    def update(self, loss: Tensor, steps: int, peak: float | None = None) -> None:
        """One optimizer step on `loss`; peak: the highest learning rate, None for the stage's.

        Raises FloatingPointError when it is not finite; weights and checkpoint stay as they were.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{self.stage.name}: the loss of step {self.step} is {loss.item()}; "
                f"{self.file} keeps the step before, a lower learning rate may get past it"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), MAX_GRAD_NORM)
        set_rate(self.optimizer, learning_rate(self.step, steps, peak or self.stage.lr))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        for name, value in self.parts.named_parameters():
            self.ema[name].lerp_(value.detach(), 1 - decay)

    def use_average(self) -> None:
        """Put the averaged weights in place of the trained ones."""
        self.parts.load_state_dict({**self.parts.state_dict(), **self.ema})  # buffers have no average


def train(stage: Stage, model: nn.Module, args: argparse.Namespace, steps: int) -> None:
    """Run one stage up to `steps`, leaving its averaged weights in `model`."""
    run = Run(stage, model, args.out / f"{stage.name}.pt")
    if run.step < steps:
        stage.prepare(model, args)
        data = TinyScenes(stage.name, args.seed, stage.posed)
        order = range(run.step * stage.batch, steps * stage.batch)
        loader = DataLoader(data, batch_size=stage.batch, sampler=order, num_workers=args.workers)
        _loop(run, stage, model, loader, (args, steps))
    run.use_average()
    stage.finish(model, args)


def _loop(run: Run, stage: Stage, model: nn.Module, loader: DataLoader, limits: tuple[Any, int]) -> None:
    args, steps = limits
    saved = time.monotonic()
    record = (args.out / f"{stage.name}.jsonl").open("a")
    bar = tqdm(loader, desc=stage.name, total=steps, initial=run.step, mininterval=20, file=sys.stderr)
    try:
        for batch in bar:
            noise = torch.Generator().manual_seed(args.seed * 1_000_003 + run.step)
            loss = stage.loss(model, batch, noise)
            run.update(loss, steps, args.learning_rate)
            if run.step % 20 == 0:
                record.write(json.dumps({"step": run.step, "loss": round(loss.item(), 5)}) + "\n")
                record.flush()
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if run.step in args.keep:
                keep_branch(run.ema, args.out, run.step)
            if time.monotonic() - saved > SAVE_EVERY_S:
                run.save()
                saved = time.monotonic()
    finally:
        run.save()
        record.close()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="yaml of the model")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="checkpoints, logs, weights")
    parser.add_argument(
        "--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="what to train"
    )
    for name, stage in STAGES.items():
        help_text = f"optimizer steps of batch {stage.batch} (default {stage.steps})"
        parser.add_argument(f"--{name}-steps", type=int, default=stage.steps, help=help_text)
    parser.add_argument(
        "--from-shipped", action="store_true", help="begin with the weights the yaml names, not at random"
    )
    parser.add_argument(
        "--new-branch",
        action="store_true",
        help="with --from-shipped: take the base model only, and begin its control branch anew",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="the highest of every stage asked for (default: its own)",
    )
    parser.add_argument(
        "--keep",
        type=int,
        nargs="*",
        default=[],
        metavar="STEP",
        help="of the control branch: also keep the average of these steps, in control-STEP.safetensors",
    )
    parser.add_argument("--cache", type=int, default=8_000, help="scenes whose latents are computed once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train what was asked for; stages that are not asked for are taken from their checkpoints."""
    args = parse_args(argv)
    args.device = pick_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = _start(args)
    try:
        trained = [name for name, stage in STAGES.items() if _run_stage(stage, model, args)]
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {args.out}", file=sys.stderr)
        return 130
    except (FloatingPointError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in export(model, args.out, trained, read_config(args.config).weights):
        print(path)
    return 0


def _start(args: argparse.Namespace) -> ControlLDM:
    base, branch = (args.config.parent / name for name in read_config(args.config).weights)
    if not args.from_shipped:
        model = create_model(args.config)
    elif args.new_branch:
        model, _ = load_for_training(args.config, [base], seed=args.seed)
    else:
        model = load_model(args.config, base, branch)
    # Convolutions on a CPU are up to a quarter faster with the channels last.
    return model.to(args.device, memory_format=torch.channels_last)


def _run_stage(stage: Stage, model: nn.Module, args: argparse.Namespace) -> bool:
    """Train a stage that was asked for or take its checkpoint; False where its weights are still random."""
    file = args.out / f"{stage.name}.pt"
    if stage.name in args.stages:
        for needed in stage.needs:
            if not (args.from_shipped or (args.out / f"{needed}.pt").exists()):
                raise FileNotFoundError(f"{stage.name} builds on {needed}, but {args.out} has no {needed}.pt")
        train(stage, model, args, getattr(args, f"{stage.name}_steps"))
    elif file.exists():
        Run(stage, model, file).use_average()
        stage.finish(model, args)
    return args.from_shipped or file.exists()


if __name__ == "__main__":
    raise SystemExit(main())
