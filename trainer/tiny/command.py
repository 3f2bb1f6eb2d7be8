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
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cldm.cldm import ControlLDM
from cldm.model import create_model, load_model
from common.atomic import atomic_write
from common.flags import add_flags, read_flags
from common.shell import Parser, run_command
from ldm.config import read_config
from ldm.util import pick_device
from scenes.things.art import FOLDER
from trainer.model import load_for_training
from trainer.tiny.data import TinyScenes
from trainer.tiny.export import export, keep_branch
from trainer.tiny.latents import cached_latents
from trainer.tiny.optimizers import set_rate
from trainer.tiny.settings import TinySettings, claim
from trainer.tiny.stages import STAGES, Stage
from trainer.tiny.worlds import world_of

CONFIG = Path(__file__).parents[2] / "models" / "tiny.yaml"
WARMUP_STEPS = 100  # AdamW knows its second moments by then
EMA_DECAY = 0.998  # averages about the last 500 steps
MAX_GRAD_NORM = 1.0  # usual: one odd batch must not undo hundreds
SAVE_EVERY_S = 180  # seconds: what a power cut costs
NAMES = "names.txt"  # in the folder of checkpoints: what the model learns to draw


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
        """Write the checkpoint, whole or not at all."""
        state = {"weights": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_write(self.file) as partial:
            torch.save({**state, "ema": self.ema, "step": self.step}, partial)

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
        self.optimizer.zero_grad()  # here, so that a stopped run leaves nothing behind
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))  # quicker at first, else it would hold the start
        for name, value in self.parts.named_parameters():
            self.ema[name].lerp_(value.detach(), 1 - decay)

    def use_average(self) -> None:
        """Put the averaged weights in place of the trained ones."""
        self.parts.load_state_dict({**self.parts.state_dict(), **self.ema})  # buffers have no average


def train(stage: Stage, model: ControlLDM, settings: TinySettings, steps: int) -> None:
    """Run one stage up to `steps`, leaving its averaged weights in `model`."""
    run = Run(stage, model, settings.out / f"{stage.name}.pt")
    if run.step < steps:
        stage.prepare(model, settings)
        latents = cached_latents(model, settings, stage.posed) if stage.on_latents else None
        data = TinyScenes(settings.world, stage.name, settings.seed, stage.posed, latents)
        fit(run, model, data, settings, steps)
    run.use_average()
    stage.finish(model, settings)


def fit(run: Run, model: nn.Module, data: Dataset, settings: TinySettings, steps: int) -> None:
    """Go on with `run` up to `steps` from its next samples; saved every few minutes and at the end."""
    order = range(run.step * run.stage.batch, steps * run.stage.batch)  # a resumed run goes on at its sample
    loader = DataLoader(data, batch_size=run.stage.batch, sampler=order, num_workers=settings.workers)
    record = (settings.out / f"{run.stage.name}.jsonl").open("a")
    bar = tqdm(loader, desc=run.stage.name, total=steps, initial=run.step, mininterval=20, file=sys.stderr)
    saved = time.monotonic()
    try:
        for batch in bar:
            noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + run.step)
            loss = run.stage.loss(model, batch, noise)
            run.update(loss, steps, settings.learning_rate)
            if run.step % 20 == 0:
                record.write(json.dumps({"step": run.step, "loss": round(loss.item(), 5)}) + "\n")
                record.flush()
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if run.step in settings.keep:
                keep_branch(run.ema, settings.out, run.step)
            if time.monotonic() - saved > SAVE_EVERY_S:
                run.save()
                saved = time.monotonic()
    finally:
        run.save()
        record.close()


def _parser() -> Parser:
    parser = Parser("python -m trainer.tiny", __doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="yaml of the model")
    parser.add_argument("--art", type=Path, default=FOLDER, help="drawings of things (default: %(default)s)")
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), help="what to train (default: all of the yaml's world)"
    )
    for name, stage in STAGES.items():
        help_text = f"optimizer steps of batch {stage.batch} (default {stage.steps})"
        parser.add_argument(f"--{name}-steps", type=int, default=stage.steps, help=help_text)
    parser.add_argument(
        "--new-branch",
        action="store_true",
        help="with --from-shipped: take the base model only, and begin its control branch anew",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    add_flags(parser, TinySettings)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train what was asked for; stages that are not asked for are taken from their checkpoints."""
    args = _parser().parse_args(argv)
    stopped = f"stopped; the same command goes on from {args.out}"
    return run_command(lambda: _train_all(args), stopped=stopped)


def _train_all(args: argparse.Namespace) -> str:
    config = read_config(args.config)
    settings = read_flags(TinySettings, args, world=world_of(config, args.art))
    wanted = args.stages or settings.world.stages
    for name in wanted:
        _check_foundations(STAGES[name], wanted, settings)
    claim(settings.out, NAMES, "\n".join(settings.world.names), "another list of words")
    torch.manual_seed(settings.seed)  # of fresh weights; all else draws from generators of its own
    model = _start(args.config, settings, new_branch=args.new_branch)
    # Convolutions on a CPU are up to a quarter faster with the channels last.
    model.to(pick_device(args.device), memory_format=torch.channels_last)
    trained = []
    for name, stage in STAGES.items():
        if name in wanted:
            train(stage, model, settings, getattr(args, f"{name}_steps"))
        elif (file := settings.out / f"{name}.pt").exists():
            Run(stage, model, file).use_average()
            stage.finish(model, settings)
        if settings.from_shipped or (settings.out / f"{name}.pt").exists():
            trained.append(name)
    return "\n".join(map(str, export(model, settings.out, trained, config.weights)))


def _check_foundations(stage: Stage, wanted: Sequence[str], settings: TinySettings) -> None:
    """FileNotFoundError for a stage whose weights would stay random."""
    for needed in stage.needs:
        there = settings.from_shipped or needed in wanted or (settings.out / f"{needed}.pt").exists()
        if not there:
            raise FileNotFoundError(f"{stage.name} builds on {needed}, but {settings.out} has no {needed}.pt")


def _start(config: Path, settings: TinySettings, *, new_branch: bool) -> ControlLDM:
    base, branch = (config.parent / name for name in read_config(config).weights)
    if not settings.from_shipped:
        return create_model(config)
    if new_branch:
        return load_for_training(config, [base], seed=settings.seed)[0]
    return load_model(config, base, branch)


if __name__ == "__main__":
    raise SystemExit(main())
