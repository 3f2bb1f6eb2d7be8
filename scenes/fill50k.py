"""Makes data in the form of Fill50k, the ControlNet tutorial's set: outlines to fill with named colours.

    python -m scenes.fill50k --out training/fill50k --count 50000 --size 512 --shapes circle

writes source/N.png (white outline on black), target/N.png (the filled shape) and prompt.json. A second run of
the same command goes on where the first one stopped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command
from scenes.dataset import make_dataset
from scenes.shape_scenes import Scene, random_scene, render
from scenes.shapes import SHAPES

MAX_SIZE = 4096  # supersampled four times, one image then takes half a gigabyte


@dataclass(frozen=True)
class Recipe:
    """What the samples of one folder have in common."""

    size: int = flag(512, "side in pixels")
    shapes: tuple[str, ...] = flag(SHAPES, f"of {', '.join(SHAPES)}; all by default", metavar="SHAPE")
    seed: int = flag(0, "another seed, other samples")
    widths: tuple[float, ...] = flag(
        (3.0, 3.0), "lowest and highest line width, pixels at 512 (default: 3 3, one thin line)",
        "--line-width", nargs=2, metavar=("MIN", "MAX"),
    )  # fmt: skip
    hand_drawn: float = flag(0.0, "share of shaky outlines with gaps")
    held_out: bool = flag(False, "make the combinations kept for tests instead of those for training")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shapes) - set(SHAPES))
        if unknown or not self.shapes:
            wrong = ", ".join(unknown) or "(none)"
            raise ValueError(f"shapes {wrong} unknown: choose from {', '.join(SHAPES)}")
        if not 1 < self.size <= MAX_SIZE:
            raise ValueError(f"size={self.size}: an image's side is 2 to {MAX_SIZE} pixels")
        if not 0 < self.widths[0] <= self.widths[1]:
            raise ValueError(f"widths={self.widths}: give the lowest and the highest, both above 0")
        if not 0 <= self.hand_drawn <= 1:
            raise ValueError(f"hand_drawn={self.hand_drawn}: a share is between 0 and 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: seeds are 0 or above")

    def scene(self, index: int) -> Scene:
        """Scene `index` of this recipe, the same one whenever it is asked for."""
        rng = np.random.default_rng([self.seed, index])
        options = {"held_out": self.held_out, "hand_drawn": self.hand_drawn, "widths": self.widths}
        return random_scene(rng, self.shapes, **options)

    def prompt(self, index: int) -> str:
        """The sentence of scene `index`."""
        return self.scene(index).prompt

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Outline and filled shape of scene `index`, uint8 [H W 3] each."""
        source, target, _ = render(self.scene(index), self.size)
        return source, target


@dataclass(frozen=True)
class Output:
    """Where the samples go and how many are made at a time."""

    out: Path = flag(Path("training/fill50k"), "folder")
    count: int = flag(50_000, "samples")
    workers: int = flag(os.cpu_count() or 1, "processes")


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as `common.shell`."""
    parser = Parser("-m scenes.fill50k", __doc__)
    add_flags(parser, Output)
    add_flags(parser, Recipe)
    args = parser.parse_args(argv)
    output = read_flags(Output, args)

    def make() -> str:
        made = make_dataset(output.out, output.count, read_flags(Recipe, args), output.workers)
        return f"{output.count} samples in {output.out} ({made} new, {output.count - made} were there)"

    kept = f"stopped; finished samples stay in {output.out}, the same command goes on from there"
    return run_command(make, stopped=kept)


if __name__ == "__main__":
    raise SystemExit(main())
