"""How well branches follow outlines after so many steps of training, as a table and as pictures.

    python -m trainer.tiny --config models/tiny.yaml --out runs/full --from-shipped --new-branch \\
        --stages control --control-steps 6000 --keep 300 1500 6000
    python -m trainer.tiny --config models/tiny_lite.yaml --out runs/lite --from-shipped --new-branch \\
        --stages control --control-steps 18000 --learning-rate 2e-3 --keep 300 1500 6000 18000
    python -m bench.quality.lite_quality full=models/tiny.yaml:runs/full lite=models/tiny_lite.yaml:runs/lite

Each row is one control-STEP.safetensors of a folder: scores on held-out scenes (`eval.fill50k`: same scenes,
same noise for all) and its weights. What a step of training takes, `bench.speed.lite` measures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from bench.harness import Bench, Column, table_of
from bench.quality.held_out import COLOURS, FOLLOWED, HeldOutFlags
from bench.results import Measurement, Rows
from common.flags import flag

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

KEPT = re.compile(r"control-(\d+)\.safetensors")
SHOWN = 8  # scenes in the grid
COLUMNS = (
    Column("weights", "weights", "{:,}"),
    FOLLOWED,
    COLOURS,
    Column("PSNR", "PSNR to truth", "{:.1f} dB"),
    Column("SSIM", "SSIM to truth", "{:.3f}"),
    Column("median IoU", "median IoU", "{:.3f}"),
)


@dataclass(frozen=True)
class LiteQualityFlags(HeldOutFlags):
    """The command line."""

    branches: tuple[str, ...] = flag((), "what to compare", "branches", metavar="NAME=YAML:FOLDER")
    run: Path = flag(Path("runs/lite-quality"), "of what is made", metavar="DIR")
    grid: Path = flag(Path("outputs/lite.png"), "picture to write")


def kept_branches(text: str) -> tuple[Path, dict[str, Path]]:
    """From NAME=YAML:FOLDER the yaml, and the folder's branch files, ascending, by the names of their rows.

    Raises ValueError or FileNotFoundError for anything else.
    """
    parts = re.fullmatch(r"([^=]+)=(.+):([^:]+)", text)
    if not parts:
        raise ValueError(f"{text!r} is not NAME=YAML:FOLDER, such as full=models/tiny.yaml:runs/full")
    name, config, folder = parts.groups()
    kept = {file: KEPT.fullmatch(file.name) for file in Path(folder).glob("control-*.safetensors")}
    steps = sorted((int(match[1]), file) for file, match in kept.items() if match)
    if not steps:
        raise FileNotFoundError(f"{folder} has no control-STEP.safetensors: train with --keep STEP")
    return Path(config), {f"{name}, {step:,} steps": file for step, file in steps}


def load(config: Path, file: Path) -> Pipeline:
    """The yaml's base with the branch of `file`."""
    from cldm.pipeline import Pipeline
    from ldm.config import read_config

    return Pipeline.from_files(config, config.parent / read_config(config).weights[0], file)


def measure(flags: LiteQualityFlags) -> Iterator[Measurement]:
    """How large and how good each branch is; writes the grid."""
    pictures = {}
    for config, files in [kept_branches(text) for text in flags.branches]:
        own = replace(flags, config=config)
        for name, file in files.items():
            weights = sum(tensor.numel() for tensor in load_file(file).values())
            yield Measurement(name, "weights", weights, "numbers")
            pictures[name], _ = own.pictures(file, partial(load, config, file))
            yield from own.scores(name, pictures[name])
    write_grid(flags, pictures)


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
    return f"{table_of(COLUMNS, 'branch')(rows)}\n\n{flags.grid}"


main = Bench("bench.quality.lite_quality", __doc__, LiteQualityFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
