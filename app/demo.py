"""What `make demo` runs: the main job with the shipped tiny model, as one labelled grid.

    python -m app.demo

Each row is one of `test_imgs/`: the input, its control map, and one picture for each of two seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from app.batch import load_pipeline
from app.provenance import Provenance, check_out, is_one_file
from cldm.request import ControlInput, Request
from common.flags import add_flags, flag, read_flags
from common.memory import memory_sentence, peak_memory
from common.shell import Parser, run_command
from ldm.image import labelled_grid, read_image, write_png

DRAWINGS = Path(__file__).parents[1] / "test_imgs"
SEEDS = 2
RIM = ControlInput("canny", params={"low": 150, "high": 500})  # keeps the coin's rim and drops the portrait
ROWS = {
    "circle.png": Request("cyan circle with brown background"),
    "star.png": Request("gold star with midnight blue background"),
    "heart.png": Request("crimson heart with light gray background"),
    "coin.png": Request("dark orange circle with dark slate gray background", controls=(RIM,)),
}


@dataclass(frozen=True)
class DemoFlags:
    """Which model draws the grid, and how."""

    config: Path | None = flag(None, "model yaml (default: models/tiny.yaml)", metavar="YAML")
    out: Path = flag(Path("outputs/demo.png"), "a .png file, or a folder for demo.png")
    seed: int = flag(0, "of the first picture of a row")
    steps: int = flag(20, "of the sampler")
    device: str = flag("auto", "auto, cpu or cuda")


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, 2 with one sentence when something is wrong, 130 after Ctrl-C."""
    parser = Parser("python -m app.demo", __doc__)
    add_flags(parser, DemoFlags)
    flags = read_flags(DemoFlags, parser.parse_args(argv))
    return run_command(lambda: _run(flags), stopped="stopped; no grid was written")


def _run(flags: DemoFlags) -> str:
    out = flags.out if is_one_file(flags.out) else flags.out / "demo.png"
    check_out(out, [], 1)
    options = {"seed": flags.seed, "steps": flags.steps, "num_samples": SEEDS}
    requests = {file: replace(request, **options) for file, request in ROWS.items()}
    pipeline = load_pipeline(Provenance(config=flags.config and flags.config.as_posix(), device=flags.device))
    cells, seconds = [], 0.0
    bar = tqdm(requests.items(), unit="row", disable=None)
    for file, request in bar:
        bar.set_description(request.prompt)
        image = read_image(DRAWINGS / file)
        result = pipeline(image, request)
        seconds += sum(result.seconds.values())
        cells.append([image, result.maps[0], *result.images])
    columns = ["input", "control map", *(f"seed {flags.seed + k}" for k in range(SEEDS))]
    labels = [f"{request.controls[0].control}: {request.prompt}" for request in requests.values()]
    write_png(out, labelled_grid(cells, labels, columns))
    cost = f"{seconds / (SEEDS * len(ROWS)):.2f} seconds a picture, {memory_sentence(peak_memory())}"
    return f"{out}: {len(ROWS)} pictures of test_imgs/ drawn with {SEEDS} seeds; {cost}"


if __name__ == "__main__":
    raise SystemExit(main())
