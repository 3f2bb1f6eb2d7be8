"""What the commands of compression are asked for: their flags, and what contradicts itself among them.

Nothing heavy is imported here, so that every --help answers at once.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from common.flags import flag

KINDS = ("heads", "mlp", "res")  # of units, each with a share of its own
Scope = Literal["layer", "global"]
SCOPE = "whether the share is of every layer, or of all of them by one order"


@dataclass(frozen=True)
class Files:
    """The model that goes in, and what comes out."""

    config: Path = flag(MISSING, "the model, such as models/tiny.yaml", "config", metavar="YAML")
    weights: tuple[Path, ...] = flag((), "float weights (default: those of the yaml)", metavar="FILE")
    out: Path | None = flag(None, "a .safetensors file, replaced if it is there", metavar="FILE")


@dataclass(frozen=True)
class Schemes:
    """Which layers become what, and how their weights are rounded."""

    scheme: str = flag("int8_static", "of most layers", metavar="NAME")
    rule: tuple[str, ...] = flag(
        (), "for layers of these names; `float` for none", action="append", metavar="PATTERN=SCHEME"
    )
    decoder: bool = flag(False, "the autoencoder's decoder too")
    compact: bool = flag(False, "int8 weights for what would stay float, the rest by half")
    plan: Path | None = flag(None, "schemes layer by layer, in place of the rules", metavar="JSON")
    plan_out: Path | None = flag(None, "write the plan that was used", metavar="JSON")
    clip: Literal["mse", "max"] = flag("mse", "scales of weights: least squared error, or nothing cut off")


@dataclass(frozen=True)
class Calibration:
    """Runs of the float model on pictures, which measure ranges and errors."""

    calibrate: Path | None = flag(None, "pictures to run the float model on", metavar="DIR")
    steps: int = flag(20, "of each such run", metavar="N")
    groups: int = flag(4, "of timesteps, ranges each", metavar="N")


@dataclass(frozen=True)
class Budget:
    """Each layer measured by itself, and what a plan may cost: at most one budget is given."""

    sensitivity: Path | None = flag(None, "what was measured; goes on where it is there", metavar="JSON")
    budget_mib: float | None = flag(None, "of the file: plan the least noise (with --plan-out)", metavar="X")
    budget_db: float | None = flag(None, "signal/noise: plan the smallest (with --plan-out)", metavar="X")

    def __post_init__(self) -> None:
        given = {"--budget-mib": self.budget_mib, "--budget-db": self.budget_db}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError("--budget-mib and --budget-db are two budgets: give one")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} {value:g}: give a number above 0")


@dataclass(frozen=True)
class QuantizeJob:
    """All that the command was asked for."""

    files: Files
    schemes: Schemes
    calibration: Calibration
    budget: Budget

    def __post_init__(self) -> None:
        files, schemes, budget = self.files, self.schemes, self.budget
        if not (files.out or budget.sensitivity):
            raise ValueError("nothing to write: give --out FILE.safetensors, or --sensitivity JSON")
        for name, path in (("--plan-out", schemes.plan_out), ("--sensitivity", budget.sensitivity)):
            if path and not path.parent.is_dir():
                raise FileNotFoundError(f"no folder {path.parent} for {name}: create it first")
        if budget.sensitivity and not self.calibration.calibrate:
            raise ValueError("--sensitivity looks at the model at work: give pictures by --calibrate DIR")
        if (budget.budget_mib or budget.budget_db) and budget.sensitivity and not schemes.plan_out:
            raise ValueError("a budget makes a plan: say where it goes by --plan-out JSON")


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
