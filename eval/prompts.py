"""Measures whether a model without control draws what the prompt says: the shape named, in the colours named.

    python -m eval.prompts --config models/tiny.yaml

generates a picture for each held-out prompt of `scenes.fill50k`. Where the shape is and how large is the
model's own choice: its filled region is moved and scaled onto examples of every shape, tilted and wobbled as
training scenes are, and counts as the shape that it covers best, or as none.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.control import colour_error, filled_mask
from eval.fidelity import COLOUR_BAR
from eval.fill50k import Settings, generate, held_out_scenes
from eval.shape import ShapeReader
from scenes.fill50k import COLOURS, SHAPES, Scene, render
from scenes.shape_scenes import MAX_TILT

EXAMPLE_SIZE, EXAMPLE_RADIUS = 128, 0.38
TILTS, HANDS, HAND = (
    11,
    3,
    0.6,
)  # examples of a shape: tilts, and at each so many wobbled ones of this strength

GRID_COLUMNS = 8


@dataclass(frozen=True)
class PromptScores:
    """One value a picture: the shape seen, None for none; whether both colours are right, bool [n]."""

    named: Sequence[str]
    seen: Sequence[str | None]
    coloured: np.ndarray

    @property
    def shaped(self) -> np.ndarray:
        """Which pictures show the shape of their prompt, bool [n]."""
        return np.array([named == seen for named, seen in zip(self.named, self.seen, strict=True)])

    def table(self) -> str:
        """Shares over all pictures, and for each shape what was seen in place of it."""
        both = self.shaped & self.coloured
        lines = [
            f"shape as named {_percent(self.shaped)}, colours as named {_percent(self.coloured)}, "
            f"both {_percent(both)}"
        ]
        for name in dict.fromkeys(self.named):
            mine = [seen for named, seen in zip(self.named, self.seen, strict=True) if named == name]
            others = {seen or "no shape": mine.count(seen) for seen in dict.fromkeys(mine) if seen != name}
            told = ", ".join(f"{count} {seen}" for seen, count in others.items()) or "nothing else"
            lines.append(f"  {name:<9} {mine.count(name):>3} of {len(mine):>3}; {told}")
        return "\n".join(lines)


def shape_reader() -> ShapeReader:
    """A reader of the shapes of `scenes.fill50k`, tilted and wobbled as they are there."""
    return ShapeReader({shape: list(_examples(shape)) for shape in SHAPES})


def score(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> PromptScores:
    """Score pictures uint8 [H W 3] against the prompts of their scenes; the scenes' places play no part."""
    read, seen, coloured = shape_reader(), [], []
    for picture, scene in zip(pictures, scenes, strict=True):
        fill, background = COLOURS[scene.fill], COLOURS[scene.background]
        mask = filled_mask(picture, fill, background)
        seen.append(read(mask))
        errors = [
            colour_error(picture, region, colour).mean() if region.any() else np.inf
            for region, colour in ((mask, fill), (~mask, background))
        ]
        coloured.append(max(errors) <= COLOUR_BAR)
    return PromptScores([scene.shape for scene in scenes], seen, np.array(coloured))


def _examples(shape: str) -> Iterator[np.ndarray]:
    plain = Scene(shape, "black", "white", radius=EXAMPLE_RADIUS)
    for angle in np.linspace(-MAX_TILT, MAX_TILT, TILTS):
        tilted = replace(plain, angle=float(angle))
        for hand in (tilted, *(replace(tilted, wobble=HAND, wobble_seed=seed) for seed in range(HANDS))):
            yield render(hand, EXAMPLE_SIZE)[2]


def _percent(which: np.ndarray) -> str:
    return f"{100 * which.mean():.1f} %"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path("models/tiny.yaml"), help="model (default: %(default)s)")
    add("--weights", type=Path, nargs="*", default=[], help="weight files (default: those the config names)")
    add("--count", type=int, default=200, help="pictures (default: %(default)s)")
    add("--steps", type=int, default=30, help="of the sampler (default: %(default)s)")
    add("--sampler", default="euler_ancestral", help="default: %(default)s")
    add("--scale", type=float, default=3.0, help="of the guidance (default: %(default)s)")
    add("--seed", type=int, default=0, help="of prompts and noise (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--grid", type=Path, help="write pictures of each shape to this PNG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, 1 with a sentence for bad input, 130 after Ctrl-C."""
    args = parse_args(argv)
    try:
        sys.stdout.write(_run(args) + "\n")
    except KeyboardInterrupt:
        sys.stderr.write("stopped before all pictures were made\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _run(args: argparse.Namespace) -> str:
    if args.count < 1:
        raise ValueError(f"count={args.count}: make 1 picture or more")
    from cldm.pipeline import Pipeline

    pipe = Pipeline.from_files(args.config, *args.weights, device=args.device)
    scenes = held_out_scenes(args.count, args.seed)
    settings = Settings(seed=args.seed, steps=args.steps, sampler=args.sampler, scale=args.scale)
    pictures = generate(pipe, scenes, None, settings)
    if args.grid:
        _save_grid(pictures, scenes, args.grid)
    return score(pictures, scenes).table()


def _save_grid(pictures: Sequence[np.ndarray], scenes: Sequence[Scene], path: Path) -> None:
    from ldm.image import labelled_grid, write_png

    rows: dict[str, list[np.ndarray]] = {}
    for picture, scene in zip(pictures, scenes, strict=True):
        rows.setdefault(scene.shape, []).append(picture)
    columns = min(GRID_COLUMNS, *map(len, rows.values()))
    cells = [row[:columns] for row in rows.values()]
    write_png(path, labelled_grid(cells, list(rows), [""] * columns, cell=EXAMPLE_SIZE))


if __name__ == "__main__":
    raise SystemExit(main())
