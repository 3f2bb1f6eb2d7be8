"""Smaller models by pruning: what training left behind, small weights, whole heads and channels.

    python -m quantize.prune strip v1-5-pruned.ckpt --out v1-5.safetensors --half
    python -m quantize.prune structured models/tiny.yaml --mlp 0.25 --res 0.25 --out small.safetensors
    python -m quantize.prune finetune models/tiny.yaml --weights small.safetensors --steps 300 \\
        --out new.safetensors
    python -m quantize.prune magnitude models/tiny.yaml --share 0.5 --out zeros.safetensors
    python -m quantize.prune 2:4 models/tiny.yaml --out sparse.safetensors
    python generate.py --weights new.safetensors --image test_imgs/circle.png --prompt "cyan circle"

A pruned file loads wherever weights do, quantization included. Only `strip` and `structured` make files
smaller and models faster everywhere: zeros take as much room as other numbers, and as long to multiply. Exit
codes: 0; 2 with one sentence about what is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command

KINDS = ("heads", "mlp", "res")  # of units, each with a share of its own
Scope = Literal["layer", "global"]
SCOPE = "whether the share is of every layer, or of all of them by one order"


@dataclass(frozen=True)
class Strip:
    """A file without what only training needs: averages, optimizer, losses."""

    input: Path = flag(MISSING, "a file of weights, or a training checkpoint", "input")
    out: Path = flag(MISSING, "file to write", metavar="FILE")
    half: bool = flag(False, "weights in half precision; schedule and integers stay exact")
    use_ema: bool = flag(False, "moving averages become the weights")
    force: bool = flag(False, "replace an older file")


@dataclass(frozen=True, kw_only=True)
class TwoOfFour:
    """Two of every four weights become zeros, for CUDA GPUs from 8.0 on; the files that others take too."""

    config: Path = flag(MISSING, "the model, such as models/tiny.yaml", "config", metavar="YAML")
    weights: tuple[Path, ...] = flag((), "default: those of the yaml", metavar="FILE")
    out: Path = flag(MISSING, "a .safetensors file; an older one goes", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class Magnitude(TwoOfFour):
    """The smallest weights become zeros."""

    scope: Scope = flag("layer", SCOPE)
    share: float = flag(MISSING, "of weights, 0 to below 1", metavar="X")


@dataclass(frozen=True, kw_only=True)
class Structured(TwoOfFour):
    """Heads and channels leave: a smaller, faster model."""

    scope: Scope = flag("layer", SCOPE)
    heads: float = flag(0.0, "share of attention heads, 0 to below 1", metavar="X")
    mlp: float = flag(0.0, "share of channels inside of feed-forward layers", metavar="X")
    res: float = flag(0.0, "share of groups of channels between a residual block's convolutions", metavar="X")
    by: Literal["magnitude", "taylor"] = flag("magnitude", "what tells how much a unit matters")
    calibrate: Path | None = flag(None, "pictures whose runs --by taylor looks at", metavar="DIR")
    steps: int = flag(8, "of each such run", metavar="N")
    groups: int = flag(4, "of timesteps, a call each", metavar="N")

    def __post_init__(self) -> None:
        if not any(self.shares.values()):
            raise ValueError("nothing would go: give --heads, --mlp or --res a share, such as 0.25")
        if self.by == "taylor" and not self.calibrate:
            raise ValueError("--by taylor looks at runs of the model: give --calibrate DIR with pictures")
        if self.scope == "global" and self.by == "magnitude":
            raise ValueError("--scope global compares layers by what they do to the answer: add --by taylor")

    @property
    def shares(self) -> dict[str, float]:
        """What goes of each kind of unit."""
        return {kind: getattr(self, kind) for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class Finetune(TwoOfFour):
    """Train a pruned model on, on drawn scenes as the tiny model's."""

    steps: int = flag(MISSING, "optimizer steps of batch 16, in all", metavar="N")
    run: Path | None = flag(None, "checkpoints, from which the same command goes on", metavar="DIR")
    learning_rate: float = flag(1e-3, "the highest", metavar="X")
    cache: int = flag(2000, "scenes encoded once", metavar="N")
    seed: int = flag(0, "of scenes and noise", metavar="N")
    workers: int = flag(1, "processes that draw", metavar="N")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N, mps")


COMMANDS = {
    "strip": Strip,
    "magnitude": Magnitude,
    "2:4": TwoOfFour,
    "structured": Structured,
    "finetune": Finetune,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m quantize.prune", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, settings in COMMANDS.items():
        about = settings.__doc__.partition(";")[0].rstrip(".")
        add_flags(commands.add_parser(name, help=about, description=about), settings)
    args = parser.parse_args(argv)

    def act() -> str:
        job = read_flags(COMMANDS[args.command], args)
        from tools.compress import pruning  # torch and the models, which --help does without

        return pruning.PRUNERS[args.command](job)

    return run_command(act)


if __name__ == "__main__":
    raise SystemExit(main())
