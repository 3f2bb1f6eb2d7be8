"""Measures how well a model follows outlines and named colours, on scenes that no training run has seen.

    python -m eval.fill50k --config models/tiny.yaml

draws held-out scenes of `scenes.fill50k` (every third by a shaky hand, with gaps), generates a picture for
each with and without control from the same noise, and prints the scores beside the bars that a shipped model
must pass. With --robustness the outlines are drawn in other ways (width, polarity, place, gaps) at 512 pixels
and read by the scribble detector, as a user's drawing is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.flags import add_flags, flag, read_flags
from common.shell import DONE, NOT_MET, Parser, run_command, say
from eval.fidelity import FidelityScores, Truth, measure, missed, quality_table, robustness_table
from scenes.colours import COLOURS
from scenes.shape_scenes import Scene, random_scene, render

if TYPE_CHECKING:  # torch takes a second to import; who only wants --help should not wait for it
    from torch import Tensor

    from cldm.pipeline import Pipeline

HAND_DRAWN_EVERY = 3
DRAWING_SIZE = 512  # of a user's drawing; line widths count in its pixels
LINE_WIDTHS = (1, 2, 4, 8, 16, 24)
OFF_CENTRE_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
STOPPED = "stopped before all pictures were made; nothing was written"
THREE_GAPS = ((0.1, 0.06), (0.45, 0.06), (0.8, 0.06))  # the widest that training draws, on every outline


@dataclass(frozen=True)
class ModelFiles:
    """Which model makes the images."""

    config: Path = flag(Path("models/tiny.yaml"), "model")
    weights: tuple[Path, ...] = flag((), "weight files (default: those the config names)")
    device: str = flag("auto", "auto, cpu or cuda")

    def open(self) -> Pipeline:
        """Load it."""
        from cldm.pipeline import Pipeline

        return Pipeline.from_files(self.config, *self.weights, device=self.device)


@dataclass(frozen=True)
class Settings:
    """How images are generated. scale: of the guidance, None for the pipeline's own."""

    seed: int = flag(0, "of scenes and noise")
    steps: int = flag(20, "of the sampler")
    sampler: str = flag("ddim", "")
    scale: float | None = flag(None, "of the guidance (default: the pipeline's)")
    batch: int = flag(20, "pictures at once")
    size: int = flag(128, "side in pixels")


@dataclass(frozen=True)
class Scope:
    """How much is measured, and what becomes of the numbers."""

    count: int = flag(200, "pictures a row")
    robustness: bool = flag(False, "also draw the outlines in other ways")
    json: Path | None = flag(None, "write all numbers, each picture's too, to this file")
    check: bool = flag(False, "end with code 1 if a bar is missed")


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Draw scenes of held-out combinations, every third hand-drawn; scene i depends on seed and i alone."""
    states = ((np.random.default_rng([seed, i]), float(i % HAND_DRAWN_EVERY == 0)) for i in range(count))
    return [random_scene(rng, held_out=True, hand_drawn=hand_drawn) for rng, hand_drawn in states]


def score(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> FidelityScores:
    """Score images uint8 [H W 3] (square), however they were made, each against its scene."""
    return measure(images, [_truth(s, p.shape[0]) for p, s in zip(images, scenes, strict=True)])


def generate(
    pipe: Pipeline, scenes: Sequence[Scene], sources: Sequence[np.ndarray] | None, settings: Settings
) -> list[np.ndarray]:
    """Generate an image uint8 [H W 3] for each scene, in batches; batch k has the noise of seed + k.

    sources: control maps uint8 [H W 3], one a scene, or None to generate without control from the same noise.
    """
    from tqdm import tqdm

    options = {"steps": settings.steps, "sampler": settings.sampler, "scale": settings.scale}
    options = {name: value for name, value in options.items() if value is not None}
    images = []
    for number, start in enumerate(tqdm(range(0, len(scenes), settings.batch), unit="batch", disable=None)):
        part = slice(start, start + settings.batch)
        hints = None if sources is None else _hints(sources[part])
        prompts = [scene.prompt for scene in scenes[part]]
        images += pipe.generate(prompts, hints, seed=settings.seed + number, **options)
    return images


def autoencode(pipe: Pipeline, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each image, uint8 [H W 3], through the autoencoder alone: the best that any control can reach."""
    from cldm.conditioning import encode_image
    from ldm.image import model_to_images

    latents = (encode_image(pipe.model, image) for image in images)
    return [model_to_images(pipe.model.decode_first_stage(latent))[0] for latent in latents]


def quality(pipe: Pipeline, count: int, settings: Settings) -> dict[str, Any]:
    """Scores with control, without it and of the autoencoder alone, for the same scenes and noise.

    Seconds are those with control.
    """
    scenes = held_out_scenes(count, settings.seed)
    sources, targets, _ = zip(*(render(scene, settings.size) for scene in scenes), strict=True)
    start = time.perf_counter()
    images = generate(pipe, scenes, sources, settings)
    seconds = (time.perf_counter() - start) / count
    scores = score(images, scenes)
    hand_drawn = scores.followed[::HAND_DRAWN_EVERY]
    return {
        "count": count,
        "settings": asdict(settings),
        "controlled": scores.summary(),
        "hand_drawn_followed_share": float(hand_drawn.mean()),
        "autoencoder": score(autoencode(pipe, targets), scenes).summary(),
        "uncontrolled": score(generate(pipe, scenes, None, settings), scenes).summary(),
        "seconds_per_picture": seconds,
        "pictures": [
            {"prompt": scene.prompt, **{name: float(values[i]) for name, values in vars(scores).items()}}
            for i, scene in enumerate(scenes)
        ],
    }


def robustness(pipe: Pipeline, count: int, settings: Settings) -> dict[str, dict[str, float]]:
    """Scores for each way of drawing in `DRAWINGS`, over the same scenes."""
    from annotator.scribble import annotate

    rows = {}
    for name, (change, inverted) in DRAWINGS.items():
        scenes = [change(scene) for scene in held_out_scenes(count, settings.seed)]
        drawings = (render(scene, DRAWING_SIZE)[0] for scene in scenes)
        sources = [annotate(255 - d if inverted else d, resolution=settings.size) for d in drawings]
        rows[name] = score(generate(pipe, scenes, sources, settings), scenes).summary()
    return rows


def _hints(sources: Sequence[np.ndarray]) -> Tensor:
    import torch

    # Channels last in memory: contiguous hints take other kernels, and the last bits of stored rows change.
    return torch.from_numpy(np.stack(sources)).permute(0, 3, 1, 2).float() / 255  # [n 3 H W] in [0, 1]


def _truth(scene: Scene, size: int) -> Truth:
    _, target, mask = render(scene, size)
    return Truth(target, mask, COLOURS[scene.fill], COLOURS[scene.background])


def _off_centre(scene: Scene) -> Scene:
    """Move the shape into a corner; which one depends on its seed."""
    corner = OFF_CENTRE_CORNERS[scene.wobble_seed % len(OFF_CENTRE_CORNERS)]
    return replace(scene, centre=tuple(1 - scene.reach if far else scene.reach for far in corner))


def _shaky(scene: Scene) -> Scene:
    scene = replace(scene, wobble=1.0, gaps=())
    centre = np.clip(scene.centre, scene.reach, 1 - scene.reach)
    return replace(scene, centre=tuple(centre.tolist()))


DRAWINGS: dict[str, tuple[Callable[[Scene], Scene], bool]] = {  # how the scene changes; black on white
    **{f"line of {w} px at {DRAWING_SIZE}": (partial(replace, width=w, gaps=()), False) for w in LINE_WIDTHS},
    "black on white": (replace, True),
    "in a corner": (_off_centre, False),
    "three gaps": (partial(replace, gaps=THREE_GAPS), False),
    "shaky hand": (_shaky, False),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where --check finds a bar that is missed."""
    parser = Parser("python -m eval.fill50k", __doc__)
    kinds = ModelFiles, Settings, Scope
    for settings in kinds:
        add_flags(parser, settings)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(*(read_flags(kind, args) for kind in kinds)), stopped=STOPPED)


def _run(files: ModelFiles, settings: Settings, scope: Scope) -> int:
    if scope.count < 1 or settings.batch < 1:
        raise ValueError(f"count={scope.count}, batch={settings.batch}: both must be 1 or more")
    if scope.json and not scope.json.parent.is_dir():
        raise FileNotFoundError(f"no folder {scope.json.parent} for --json: create it first")
    pipe = files.open()
    found: dict[str, Any] = {"quality": quality(pipe, scope.count, settings)}
    print(quality_table(found["quality"]))
    if scope.robustness:
        found["robustness"] = robustness(pipe, scope.count, settings)
        print("\n" + robustness_table(found["robustness"]))
    if scope.json:
        scope.json.write_text(json.dumps(found, indent=1))
    failures = missed(found["quality"]) if scope.check else []
    for failure in failures:
        say(f"not good enough: {failure}")
    return NOT_MET if failures else DONE


if __name__ == "__main__":
    raise SystemExit(main())
