"""What `make demo` runs: the main job with the shipped tiny model, as one labelled grid.

    python -m app.demo

Each row is one of `test_imgs/`: the input, its control map, and one picture for each of two seeds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cldm.pipeline import Pipeline
    from cldm.request import Request

PICTURES = Path(__file__).parents[1] / "test_imgs"
SEEDS = 2


@dataclass(frozen=True)
class Scene:
    """One row of the grid."""

    file: str
    prompt: str
    control: str = "scribble"
    params: Mapping[str, Any] = field(default_factory=dict)

    def request(self, seed: int, steps: int) -> "Request":
        """What to make of it: pictures of `SEEDS` seeds from `seed` on."""
        from cldm.request import ControlInput, Request

        control = ControlInput(self.control, params=self.params)
        return Request(self.prompt, controls=(control,), seed=seed, steps=steps, num_samples=SEEDS)


SCENES = (
    Scene("circle.png", "cyan circle with brown background"),
    Scene("star.png", "gold star with midnight blue background"),
    Scene("heart.png", "crimson heart with light gray background"),
    # These thresholds keep the coin's rim and drop the portrait.
    Scene(
        "coin.png", "dark orange circle with dark slate gray background", "canny", {"low": 150, "high": 500}
    ),
)


def make_grid(
    pipeline: "Pipeline", scenes: Sequence[Scene], *, seed: int = 0, steps: int = 20
) -> "tuple[np.ndarray, float]":
    """The grid of `scenes`, uint8 [H W 3], and the seconds that one picture took on average.

    Errors as `ldm.image.read_image` and the pipeline.
    """
    from tqdm import tqdm

    from ldm.image import labelled_grid, read_image

    rows, seconds = [], 0.0
    bar = tqdm(scenes, unit="row", disable=None)
    for scene in bar:
        bar.set_description(scene.prompt)
        image = read_image(PICTURES / scene.file)
        result = pipeline(image, scene.request(seed, steps))
        seconds += sum(result.seconds.values())
        rows.append([image, result.maps[0], *result.images])
    columns = ["input", "control map", *(f"seed {seed + k}" for k in range(SEEDS))]
    labels = [f"{scene.control}: {scene.prompt}" for scene in scenes]
    return labelled_grid(rows, labels, columns), seconds / (SEEDS * len(rows))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", help="model yaml (default: models/tiny.yaml)")
    add("--out", type=Path, default=Path("outputs/demo.png"), help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the first picture of a row (default: %(default)s)")
    add("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, 2 with one sentence when something is wrong, 130 after Ctrl-C."""
    args = parse_args(argv)
    try:
        print(_run(args))
    except KeyboardInterrupt:
        sys.stderr.write("stopped; no grid was written\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _run(args: argparse.Namespace) -> str:
    from app.batch import load_pipeline
    from app.provenance import Source, check_out, is_one_file
    from common.memory import memory_sentence, peak_memory
    from ldm.image import write_png

    out = args.out if is_one_file(args.out) else args.out / "demo.png"
    check_out(out, [], 1)
    SCENES[0].request(args.seed, args.steps)  # a wrong seed or step count is said before the model is loaded
    pipeline = load_pipeline(Source(config=args.config, device=args.device))
    grid, seconds = make_grid(pipeline, SCENES, seed=args.seed, steps=args.steps)
    write_png(out, grid)
    cost = f"{seconds:.2f} seconds a picture, {memory_sentence(peak_memory())}"
    return f"{out}: {len(SCENES)} pictures of test_imgs/ drawn with {SEEDS} seeds; {cost}"


if __name__ == "__main__":
    raise SystemExit(main())
