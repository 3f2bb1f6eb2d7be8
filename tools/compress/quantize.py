"""A model's weights as a quantized file, with a table of what it saves and what it costs.

    python -m quantize models/tiny.yaml --scheme int8_static --calibrate test_imgs --out tiny-int8.safetensors
    python generate.py --quantized tiny-int8.safetensors --image test_imgs/circle.png --prompt "cyan circle"
    python -m quantize models/tiny.yaml --scheme int4_group --calibrate test_imgs --sensitivity noise.json \\
        --budget-mib 12 --plan-out plan.json
    python -m quantize models/tiny.yaml --plan plan.json --out tiny-int4.safetensors

A picture's prompt for calibration is in the text file of its name, is one of those that the yaml lists under
`calibration:`, or is the picture's name. Exit codes: 0; 2 with one sentence about what is wrong; 130 after
Ctrl-C: nothing is written then, but --sensitivity keeps what was measured.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command


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
    balance: bool = flag(False, "move outliers of inputs into weights (SmoothQuant)")


@dataclass(frozen=True)
class Budget:
    """Each layer measured by itself, and what a plan may cost.

    budget_mib: of the whole file; budget_db: signal over noise of every network. At most one is given.
    """

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


GROUPS = {
    "files": (Files, ""),
    "which layers become what": (Schemes, ""),
    "calibration": (Calibration, "runs of the float model on pictures, which measure ranges and errors"),
    "sensitivity": (Budget, "measure each layer by itself and plan by it; --out is not needed"),
}


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
        for name, asked in (("--balance", self.calibration.balance), ("--sensitivity", budget.sensitivity)):
            if asked and not self.calibration.calibrate:
                raise ValueError(f"{name} looks at the model at work: give pictures by --calibrate DIR")
        if (budget.budget_mib or budget.budget_db) and budget.sensitivity and not schemes.plan_out:
            raise ValueError("a budget makes a plan: say where it goes by --plan-out JSON")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m quantize", __doc__)
    for title, (settings, about) in GROUPS.items():
        add_flags(parser, settings, title, about)
    args = parser.parse_args(argv)
    stopped = "stopped; nothing was written"
    if args.sensitivity:
        stopped = f"stopped; what was measured is in {args.sensitivity}: the same command goes on"

    def act() -> str:
        job = QuantizeJob(*(read_flags(settings, args) for settings, _ in GROUPS.values()))
        from tools.compress import quantizing  # torch and the models, which --help does without

        return quantizing.plan(job) if job.budget.sensitivity else quantizing.quantize(job)

    return run_command(act, stopped=stopped)


if __name__ == "__main__":
    raise SystemExit(main())
