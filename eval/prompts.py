"""Measures whether a model without control draws what the prompt says: the shape named, in the colours named.

    python -m eval.prompts --config models/tiny.yaml

generates a picture for each held-out prompt of `scenes.fill50k`. Where the shape is and how large is the
model's own choice: its filled region is moved and scaled onto examples of every shape, tilted and wobbled as
training scenes are, and counts as the shape that it covers best, or as none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command
from eval.control import ShapeReader, colour_error, filled_mask
from eval.fidelity import COLOUR_BAR
from eval.fill50k import STOPPED, ModelFiles, Settings, generate, held_out_scenes
from scenes.colours import COLOURS
from scenes.shape_scenes import MAX_TILT, Scene, render
from scenes.shapes import SHAPES

EXAMPLE_SIZE, EXAMPLE_RADIUS = 128, 0.38
TILTS, HANDS, HAND = 11, 3, 0.6  # examples of a shape: tilts, at each so many wobbled ones, how strongly
GRID_COLUMNS = 8


@dataclass(frozen=True)
class PromptSettings(Settings):
    """How images are generated, by other defaults, and how many."""

    steps: int = flag(30, "of the sampler")
    sampler: str = flag("euler_ancestral", "")
    scale: float | None = flag(3.0, "of the guidance")
    size: int = EXAMPLE_SIZE  # without a hint the model has a size of its own
    count: int = flag(200, "pictures")
    grid: Path | None = flag(None, "write pictures of each shape to this PNG")


@dataclass(frozen=True)
class PromptScores:
    """One value an image: the shape seen, None for none; whether both colours are right, bool [n]."""

    named: Sequence[str]
    seen: Sequence[str | None]
    coloured: np.ndarray

    @property
    def shaped(self) -> np.ndarray:
        """Which images show the shape of their prompt, bool [n]."""
        return np.array([named == seen for named, seen in zip(self.named, self.seen, strict=True)])

    def table(self) -> str:
        """Shares over all images, and for each shape what was seen in place of it."""
        both = self.shaped & self.coloured
        shares = {"shape as named": self.shaped, "colours as named": self.coloured, "both": both}
        lines = [", ".join(f"{name} {100 * which.mean():.1f} %" for name, which in shares.items())]
        for name in dict.fromkeys(self.named):
            mine = [seen for named, seen in zip(self.named, self.seen, strict=True) if named == name]
            others = {seen or "no shape": mine.count(seen) for seen in dict.fromkeys(mine) if seen != name}
            told = ", ".join(f"{count} {seen}" for seen, count in others.items()) or "nothing else"
            lines.append(f"  {name:<9} {mine.count(name):>3} of {len(mine):>3}; {told}")
        return "\n".join(lines)


def shape_reader() -> ShapeReader:
    """A reader of the shapes of `scenes.fill50k`, tilted and wobbled as they are there."""
    return ShapeReader({shape: list(_examples(shape)) for shape in SHAPES})


def score(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> PromptScores:
    """Score images uint8 [H W 3] against the prompts of their scenes; the scenes' places play no part."""
    read, seen, coloured = shape_reader(), [], []
    for image, scene in zip(images, scenes, strict=True):
        fill, background = COLOURS[scene.fill], COLOURS[scene.background]
        mask = filled_mask(image, fill, background)
        seen.append(read(mask))
        regions = (mask, fill), (~mask, background)
        errors = [colour_error(image, region, colour).mean() for region, colour in regions if region.any()]
        coloured.append(len(errors) == len(regions) and max(errors) <= COLOUR_BAR)
    return PromptScores([scene.shape for scene in scenes], seen, np.array(coloured))


def _examples(shape: str) -> Iterator[np.ndarray]:
    plain = Scene(shape, "black", "white", radius=EXAMPLE_RADIUS)
    for angle in np.linspace(-MAX_TILT, MAX_TILT, TILTS):
        tilted = replace(plain, angle=float(angle))
        for hand in (tilted, *(replace(tilted, wobble=HAND, wobble_seed=seed) for seed in range(HANDS))):
            yield render(hand, EXAMPLE_SIZE)[2]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m eval.prompts", __doc__)
    kinds = ModelFiles, PromptSettings
    for settings in kinds:
        add_flags(parser, settings)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(*(read_flags(kind, args) for kind in kinds)), stopped=STOPPED)


def _run(files: ModelFiles, settings: PromptSettings) -> str:
    if settings.count < 1 or settings.batch < 1:
        raise ValueError(f"count={settings.count}, batch={settings.batch}: both must be 1 or more")
    scenes = held_out_scenes(settings.count, settings.seed)
    images = generate(files.open(), scenes, None, settings)
    if settings.grid:
        _save_grid(images, scenes, settings.grid)
    return score(images, scenes).table()


def _save_grid(images: Sequence[np.ndarray], scenes: Sequence[Scene], path: Path) -> None:
    from ldm.image import labelled_grid, write_png

    rows: dict[str, list[np.ndarray]] = {}
    for image, scene in zip(images, scenes, strict=True):
        rows.setdefault(scene.shape, []).append(image)
    columns = min(GRID_COLUMNS, *map(len, rows.values()))
    cells = [row[:columns] for row in rows.values()]
    write_png(path, labelled_grid(cells, list(rows), [""] * columns, cell=EXAMPLE_SIZE))


if __name__ == "__main__":
    raise SystemExit(main())
