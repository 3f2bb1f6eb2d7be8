"""How well branches follow outlines after so many steps of training, as a table and as pictures.

    python -m trainer.tiny --config models/tiny.yaml --out runs/full --from-shipped --new-branch \\
        --stages control --control-steps 6000 --keep 300 1500 6000
    python -m trainer.tiny --config models/tiny_lite.yaml --out runs/lite --from-shipped --new-branch \\
        --stages control --control-steps 18000 --learning-rate 2e-3 --keep 300 1500 6000 18000
    python -m bench.quality.lite_quality full=models/tiny.yaml:runs/full lite=models/tiny_lite.yaml:runs/lite

Each row is one control-STEP.safetensors of a folder: scores on held-out scenes (`eval.fill50k`: same scenes,
same noise for all), weights, and the median time of a step, taken here, branch after branch in turns.
"""

import argparse
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from eval.fill50k import Settings
    from scenes.shape_scenes import Scene

    Measured = tuple[dict[str, float], list[np.ndarray]]  # scores, and the pictures shown

BATCH = 16  # of the training whose step is timed: that of trainer.tiny.command
KEPT = re.compile(r"control-(\d+)\.safetensors")
SHOWN = 8  # scenes in the grid
SCORES = ("followed_share", "coloured_share", "median_psnr", "median_ssim", "median_iou")
HEAD = (
    "branch", "steps", "weights", "s a step", "followed", "colours", "PSNR", "SSIM", "median IoU",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One kind of branch: its yaml, and the branch files of its run by their steps, ascending."""

    name: str
    config: Path
    files: dict[int, Path]

    @classmethod
    def parse(cls, text: str) -> "Trained":
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


def step_seconds(branches: "Sequence[Trained]", size: int, rounds: int) -> dict[str, float]:
    """Median seconds of a training step, by the branch's name."""
    from bench.speed.lite import Bench
    from ldm.config import read_config

    bench = Bench({one.name: read_config(one.config) for one in branches}, size, BATCH, "auto")
    times: dict[str, list[float]] = {one.name: [] for one in branches}
    for count in range(rounds + 1):
        for name, values in times.items():
            took = bench.seconds(lambda name=name: bench.training_step(name))
            if count:  # the first one warms up
                values.append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def evaluate(branch: Trained, scenes: "Sequence[Scene]", settings: "Settings") -> "dict[int, Measured]":
    """Scores by steps, and the pictures of the scenes that are shown."""
    from cldm.pipeline import Pipeline
    from eval.fill50k import generate, score
    from ldm.config import read_config
    from scenes.shape_scenes import render

    base = branch.config.parent / read_config(branch.config).weights[0]
    sources = [render(scene, settings.size)[0] for scene in scenes]
    found = {}
    for steps, file in branch.files.items():
        pictures = generate(Pipeline.from_files(branch.config, base, file), scenes, sources, settings)
        found[steps] = (score(pictures, scenes).summary(), pictures[:SHOWN])
    return found


def table(branches: "Sequence[Trained]", results: "Mapping[str, dict[int, Measured]]", costs: dict) -> str:
    """A row for each file; costs: what the rows of a branch share, as texts, by its name."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for branch in branches:
        for steps, (scores, _) in results[branch.name].items():
            cells = [
                branch.name,
                f"{steps:,}",
                *costs[branch.name],
                *map(_shown, SCORES, map(scores.get, SCORES)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(name: str, value: float) -> str:
    if name.endswith("share"):
        return f"{100 * value:.1f} %"
    return f"{value:.1f} dB" if name.endswith("psnr") else f"{value:.3f}"


def grid(scenes: "Sequence[Scene]", results: "Mapping[str, dict[int, Measured]]", size: int) -> "np.ndarray":
    """The first scenes: outline, truth, and what every file of every branch makes of it; uint8 [H W 3]."""
    from ldm.image import labelled_grid
    from scenes.shape_scenes import render

    shown = scenes[:SHOWN]
    sources, targets, _ = zip(*(render(scene, size) for scene in shown), strict=True)
    rows, labels = [sources, targets], ["outline", "truth"]
    for name, by_steps in results.items():
        rows += [pictures for _, pictures in by_steps.values()]
        labels += [f"{name}, {steps:,} steps" for steps in by_steps]
    return labelled_grid(rows, labels, [scene.prompt.split(" with ")[0] for scene in shown], cell=size)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.lite_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("branches", nargs="+", metavar="NAME=YAML:FOLDER", help="what to compare")
    add("--count", type=int, default=200, help="held-out scenes (default: %(default)s)")
    add("--size", type=int, default=128, help="side in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of scenes and noise (default: %(default)s)")
    add("--rounds", type=int, default=15, help="timed steps of each branch (default: %(default)s)")
    add("--grid", type=Path, default=Path("outputs/lite.png"), help="picture to write (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the grid; 2 with a sentence about what is wrong, 130 after Ctrl-C."""
    args = parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _run(args: argparse.Namespace) -> int:
    if args.count < 1 or args.rounds < 1:
        raise ValueError(f"--count {args.count} --rounds {args.rounds}: give 1 or more")
    branches = [Trained.parse(text) for text in args.branches]
    from eval.fill50k import Settings, held_out_scenes
    from ldm.config import create_meta_model
    from ldm.image import write_png

    seconds, costs = step_seconds(branches, args.size, args.rounds), {}
    for one in branches:
        count = sum(value.numel() for value in create_meta_model(one.config).control_model.parameters())
        costs[one.name] = [f"{count:,}", f"{seconds[one.name]:.2f}"]
    scenes, settings = held_out_scenes(args.count, args.seed), Settings(seed=args.seed, size=args.size)
    results = {one.name: evaluate(one, scenes, settings) for one in branches}
    print(f"{args.count} held-out scenes of {args.size} pixels, seed {args.seed}; steps of {BATCH}")
    print(table(branches, results, costs))
    args.grid.parent.mkdir(parents=True, exist_ok=True)
    print(write_png(args.grid, grid(scenes, results, args.size)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
