"""What `make demo` runs: the main job with the shipped tiny model, as one labelled grid.

    python -m app.demo

Each row is one of `test_imgs/`: the input, its control map, and one picture for each of two seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command

if TYPE_CHECKING:
    import numpy as np

    from cldm.pipeline import Pipeline
    from cldm.request import Request

DRAWINGS = Path(__file__).parents[1] / "test_imgs"
SEEDS = 2


@dataclass(frozen=True)
class DemoFlags:
    """Which model draws the grid, and how."""

    config: Path | None = flag(None, "model yaml (default: models/tiny.yaml)", metavar="YAML")
    out: Path = flag(Path("outputs/demo.png"), "a .png file, or a folder for demo.png")
    seed: int = flag(0, "of the first picture of a row")
    steps: int = flag(20, "of the sampler")
    device: str = flag("auto", "auto, cpu or cuda")


@dataclass(frozen=True)
class GridRow:
    """One input and what is made of it."""

    file: str
    prompt: str
    control: str = "scribble"
    params: Mapping[str, Any] = field(default_factory=dict)

    def request(self, seed: int, steps: int) -> Request:
        """Images of `SEEDS` seeds from `seed` on."""
        from cldm.request import ControlInput, Request

        control = ControlInput(self.control, params=self.params)
        return Request(self.prompt, controls=(control,), seed=seed, steps=steps, num_samples=SEEDS)


EDGES = {"low": 150, "high": 500}  # keep the coin's rim and drop the portrait
ROWS = (
    GridRow("circle.png", "cyan circle with brown background"),
    GridRow("star.png", "gold star with midnight blue background"),
    GridRow("heart.png", "crimson heart with light gray background"),
    GridRow("coin.png", "dark orange circle with dark slate gray background", "canny", EDGES),
)


def make_grid(
    pipeline: Pipeline, rows: Sequence[GridRow], *, seed: int = 0, steps: int = 20
) -> tuple[np.ndarray, float]:
    """The grid of `rows`, uint8 [H W 3], and the seconds that one image took on average.

    Errors as `ldm.image.read_image` and the pipeline.
    """
    from tqdm import tqdm

    from ldm.image import labelled_grid, read_image

    cells, seconds = [], 0.0
    bar = tqdm(rows, unit="row", disable=None)
    for row in bar:
        bar.set_description(row.prompt)
        image = read_image(DRAWINGS / row.file)
        result = pipeline(image, row.request(seed, steps))
        seconds += sum(result.seconds.values())
        cells.append([image, result.maps[0], *result.images])
    columns = ["input", "control map", *(f"seed {seed + k}" for k in range(SEEDS))]
    labels = [f"{row.control}: {row.prompt}" for row in rows]
    return labelled_grid(cells, labels, columns), seconds / (SEEDS * len(rows))


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, 2 with one sentence when something is wrong, 130 after Ctrl-C."""
    parser = Parser("python -m app.demo", __doc__)
    add_flags(parser, DemoFlags)
    flags = read_flags(DemoFlags, parser.parse_args(argv))
    return run_command(lambda: _run(flags), stopped="stopped; no grid was written")


def _run(flags: DemoFlags) -> str:
    from app.batch import load_pipeline
    from app.provenance import Provenance, check_out, is_one_file
    from common.memory import memory_sentence, peak_memory
    from ldm.image import write_png

    out = flags.out if is_one_file(flags.out) else flags.out / "demo.png"
    check_out(out, [], 1)
    ROWS[0].request(flags.seed, flags.steps)  # a wrong seed or step count is said before the model is loaded
    config = flags.config and flags.config.as_posix()
    pipeline = load_pipeline(Provenance(config=config, device=flags.device))
    grid, seconds = make_grid(pipeline, ROWS, seed=flags.seed, steps=flags.steps)
    write_png(out, grid)
    cost = f"{seconds:.2f} seconds a picture, {memory_sentence(peak_memory())}"
    return f"{out}: {len(ROWS)} pictures of test_imgs/ drawn with {SEEDS} seeds; {cost}"


if __name__ == "__main__":
    raise SystemExit(main())
