"""How well branches follow outlines after so many steps of training, as a table and as pictures.

    python -m trainer.tiny --config models/tiny.yaml --out runs/full --from-shipped --new-branch \\
        --stages control --control-steps 6000 --keep 300 1500 6000
    python -m trainer.tiny --config models/tiny_lite.yaml --out runs/lite --from-shipped --new-branch \\
        --stages control --control-steps 18000 --learning-rate 2e-3 --keep 300 1500 6000 18000
    python -m bench.quality.lite_quality full=models/tiny.yaml:runs/full lite=models/tiny_lite.yaml:runs/lite

Each row is one control-STEP.safetensors of a folder: scores on held-out scenes (`eval.fill50k`: same scenes,
same noise for all), weights, and the median time of a step, taken here, branch after branch in turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import ROUNDS, Bench
from bench.processes import interleaved
from bench.quality.held_out import HeldOutFlags, quality_table, share
from bench.results import Measurement, Rows
from bench.speed.lite import BranchExchange
from common.flags import flag

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

BATCH = 16  # of the training whose step is timed: that of trainer.tiny
KEPT = re.compile(r"control-(\d+)\.safetensors")
SHOWN = 8  # scenes in the grid
COLUMNS = (
    ("weights", "weights", "{:,.0f}".format),
    ("s a step", "training step", "{:.2f}".format),
    ("followed", "followed", share),
    ("colours", "colours", share),
    ("PSNR", "PSNR to truth", "{:.1f} dB".format),
    ("SSIM", "SSIM to truth", "{:.3f}".format),
    ("median IoU", "median IoU", "{:.3f}".format),
)


@dataclass(frozen=True)
class LiteQualityFlags(HeldOutFlags):
    """The command line."""

    branches: tuple[str, ...] = flag((), "what to compare", "branches", metavar="NAME=YAML:FOLDER")
    rounds: int = flag(15, ROUNDS)
    run: Path = flag(Path("runs/lite-quality"), "of what is made", metavar="DIR")
    grid: Path = flag(Path("outputs/lite.png"), "picture to write")


@dataclass(frozen=True)
class TrainedBranch:
    """One kind of branch: its yaml, and the branch files of its run by their steps, ascending."""

    name: str
    config: Path
    files: dict[int, Path]

    @classmethod
    def parse(cls, text: str) -> TrainedBranch:
        """From NAME=YAML:FOLDER. Raises ValueError or FileNotFoundError for anything else."""
        parts = re.fullmatch(r"([^=]+)=(.+):([^:]+)", text)
        if not parts:
            raise ValueError(f"{text!r} is not NAME=YAML:FOLDER, such as full=models/tiny.yaml:runs/full")
        name, config, folder = parts.groups()
        kept = {file: KEPT.fullmatch(file.name) for file in Path(folder).glob("control-*.safetensors")}
        found = {int(match[1]): file for file, match in kept.items() if match}
        if not found:
            raise FileNotFoundError(f"{folder} has no control-STEP.safetensors: train with --keep STEP")
        return cls(name, Path(config), dict(sorted(found.items())))

    def rows(self) -> dict[str, Path]:
        """Its files by the names of their rows."""
        return {f"{self.name}, {steps:,} steps": file for steps, file in self.files.items()}

    def pipeline(self, file: Path) -> Pipeline:
        """The yaml's base with the branch of `file`."""
        from cldm.pipeline import Pipeline
        from ldm.config import read_config

        base = self.config.parent / read_config(self.config).weights[0]
        return Pipeline.from_files(self.config, base, file)


def measure(flags: LiteQualityFlags) -> Iterator[Measurement]:
    """What the branches cost, in turns, then how good each file is; writes the grid."""
    branches = [TrainedBranch.parse(text) for text in flags.branches]
    costs = {branch.name: list(rows) for branch, rows in zip(branches, _costs(flags, branches), strict=True)}
    pictures = {}
    for branch in branches:
        own = replace(flags, config=branch.config)
        for name, file in branch.rows().items():
            yield from (replace(one, subject=name) for one in costs[branch.name])
            pictures[name], _ = own.pictures(file, partial(branch.pipeline, file))
            yield from own.scores(name, pictures[name])
    write_grid(flags, pictures)


def _costs(flags: LiteQualityFlags, branches: Sequence[TrainedBranch]) -> Iterator[list[Measurement]]:
    """What all rows of each branch share."""
    from ldm.config import read_config

    configs = {one.name: read_config(one.config) for one in branches}
    exchange = BranchExchange(configs, flags.size, BATCH, "auto")
    runs = {name: partial(exchange.training_step, name) for name in configs}
    taken = interleaved(runs, flags.rounds, exchange.inputs.x.device.type)
    for name, branch in exchange.branches.items():
        weights = sum(value.numel() for value in branch.parameters())
        yield [
            Measurement(name, "weights", weights, "numbers"),
            Measurement.of(name, "training step", "s", [cost.wall for cost in taken[name]]),
        ]


def write_grid(flags: LiteQualityFlags, pictures: dict[str, Sequence]) -> None:
    """The first scenes: outline, truth, and what every file of every branch makes of it."""
    from eval.fill50k import held_out_scenes
    from ldm.image import labelled_grid, write_png
    from scenes.shape_scenes import render

    scenes = held_out_scenes(flags.count, flags.seed)[:SHOWN]
    sources, targets, _ = zip(*(render(scene, flags.size) for scene in scenes), strict=True)
    lines = [sources, targets, *(made[:SHOWN] for made in pictures.values())]
    names = [scene.prompt.split(" with ")[0] for scene in scenes]
    flags.grid.parent.mkdir(parents=True, exist_ok=True)
    write_png(flags.grid, labelled_grid(lines, ["outline", "truth", *pictures], names, cell=flags.size))


def table(rows: Rows, flags: LiteQualityFlags) -> str:
    """A row for each file, then where the grid is."""
    return f"{quality_table(rows, COLUMNS, 'branch')}\n\n{flags.grid}"


main = Bench("bench.quality.lite_quality", __doc__, LiteQualityFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
