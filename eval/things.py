"""Measures the model of everyday things: is it the word, are the lines followed, are the colours those named?

    python -m eval.things --config models/things.yaml --check

draws sketches of art in a style that no training saw, takes people's drawings, and prompts without control;
a judge that knows the art names what it sees. Each row is a share of n images with its Wilson interval,
beside the floor that a model must pass to be the default, and the aim.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from common.flags import add_flags, flag, read_flags
from common.shell import DONE, NOT_MET, Parser, run_command, say
from eval.fill50k import ModelFiles, Settings, autoencode, generate
from eval.thing_scores import DOODLES, Doodle, Share, colours_named, lines_followed, load_doodles, save_grid
from scenes.things.art import FOLDER, Art, load_art
from scenes.things.scene import ThingScene, random_scene, render
from scenes.things.sketch import scribble
from scenes.things.words import words

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline
    from cldm.recognizer import Judge

DRAWING_SIDE = 256  # of what the recognizer is shown
GRID_TILES, DOODLE_ROWS, SEEDS = 64, 30, 2  # images of a grid; words in alphabetical order, images of each


@dataclass(frozen=True)
class ThingsScope:
    """How much is measured, with what, and what becomes of it."""

    count: int = flag(100, "images a row")
    art: Path = flag(FOLDER, "drawings of things")
    doodles: Path = flag(DOODLES, "drawings by people")
    json: Path | None = flag(None, "write every row to this file")
    grids: Path | None = flag(None, "write grids of unpicked images into this folder")
    check: bool = flag(False, "end with code 1 if a floor is missed")


@dataclass(frozen=True)
class Asked:
    """As much of a scene as generation needs: a prompt that names one word."""

    word: str

    @property
    def prompt(self) -> str:
        """The shortest sentence of training."""
        return f"a {self.word}"


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    pipe: Pipeline
    judge: Judge
    plan: ThingsScope
    settings: Settings

    def draw(
        self, asked: Sequence[Asked | ThingScene], maps: Sequence[np.ndarray] | None
    ) -> list[np.ndarray]:
        """An image uint8 [H W 3] for each scene, by its map uint8 [H W] or by the prompt alone."""
        sources = maps and [cv2.cvtColor(one, cv2.COLOR_GRAY2RGB) for one in maps]
        return generate(self.pipe, asked, sources, self.settings)

    def judged(self, name: str, images: Sequence[np.ndarray], named: Sequence[str],
               bars: tuple[float | None, float | None] = (None, None), top: int = 1) -> Share:  # fmt: skip
        """The share of images whose word is among the judge's `top`."""
        orders = self.judge.order(images)
        hits = sum(word in order[:top] for word, order in zip(named, orders, strict=True))
        return Share(f"{name}: the word, top-{top}", hits, len(named), *bars)

    def grid(self, name: str, tiles: Sequence[np.ndarray], columns: int = 8) -> None:
        """Keep images to be looked at."""
        if self.plan.grids:
            save_grid(self.plan.grids / name, tiles, columns)


def measure(bench: Bench) -> list[Share]:
    """Every row but those of words, time and quantization."""
    sprites = load_art(bench.plan.art)
    everything = Art(sprites, held_out=None)
    return [
        *judge_rows(bench, everything),
        *sketch_rows(bench, Art(sprites, held_out=True)),
        *drawing_rows(bench),
        *prompt_rows(bench, everything),
    ]


def wanted_words(count: int, rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    """So many words, every one before any comes twice."""
    order: list[str] = []
    while len(order) < count:
        order += [names[i] for i in rng.permutation(len(names))]
    return order[:count]


def judge_rows(bench: Bench, art: Art) -> list[Share]:
    """What the judge makes of real art, and what the autoencoder alone leaves of it."""
    rng = np.random.default_rng([bench.settings.seed, 3])
    names = wanted_words(bench.plan.count, rng, art.words)
    real = [render(random_scene(rng, art, alone=True, word=name), bench.settings.size)[0] for name in names]
    rows = [bench.judged("real art", real, names, (0.95, 0.95))]
    return [*rows, bench.judged("  through the autoencoder", autoencode(bench.pipe, real), names)]


def sketched_scenes(count: int, art: Art, seed: int) -> tuple[list[ThingScene], list[np.ndarray]]:
    """Scenes of one thing each in held-out art, and scribbles of them, uint8 [H W]."""
    rng = np.random.default_rng([seed, 1])
    names = wanted_words(count, rng, art.words)
    scenes = [random_scene(rng, art, alone=True, held_out=True, word=name) for name in names]
    return scenes, [scribble(rng, scene, 128) for scene in scenes]


def sketch_rows(bench: Bench, art: Art) -> list[Share]:
    """Sketches of art in styles that were held out, in colours that were."""
    scenes, maps = sketched_scenes(bench.plan.count, art, bench.settings.seed)
    images = bench.draw(scenes, maps)
    pairs = zip(maps, images, strict=True)
    bench.grid("sketches.png", [tile for m, i in pairs for tile in (cv2.merge([m] * 3), i)][:GRID_TILES])
    names = [scene.things[0].sprite.word for scene in scenes]
    said = np.array([scene.said_background or scene.things[0].colour is not None for scene in scenes])
    right = np.logical_and(*colours_named(images, scenes))[said]
    return [
        bench.judged("sketch of held-out art", images, names, (0.80, 0.92)),
        _followed(images, maps),
        Share("  named colours within 40/255", int(right.sum()), len(right), 0.80, 0.95),
    ]


def drawing_rows(bench: Bench) -> list[Share]:
    """Drawings by people: read by the recognizer, and made into images."""
    from cldm.recognizer import RECOGNIZER, Recognizer, load_net

    doodles = load_doodles(bench.plan.doodles, set(words()))
    recognizer = load_net(Recognizer, RECOGNIZER)
    told = [[word for word, _ in recognizer.top(255 - one.draw(DRAWING_SIDE))] for one in doodles]
    hits = [sum(one.word in told[i][:k] for i, one in enumerate(doodles)) for k in (1, 5)]
    rng = np.random.default_rng([bench.settings.seed, 4])
    some = [doodles[i] for i in rng.permutation(len(doodles))[: bench.plan.count]]
    maps, names = [one.draw(bench.settings.size) for one in some], [one.word for one in some]
    images = bench.draw([Asked(name) for name in names], maps)
    if bench.plan.grids:
        _drawing_grid(bench, doodles)
    return [
        Share("recognizer on drawings by people, top-1", hits[0], len(doodles), 0.35, 0.55),
        Share("recognizer on drawings by people, top-5", hits[1], len(doodles), 0.60, 0.80),
        bench.judged("drawing by a person", images, names, (0.50, 0.70)),
        bench.judged("drawing by a person", images, names, (0.75, 0.90), top=5),
        _followed(images, maps),
    ]


def _followed(images: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> Share:
    f1 = lines_followed(images, maps)
    return Share("  its lines followed (mean F1 within 3 px)", float(f1.sum()), len(f1), 0.70, 0.85)


def _drawing_grid(bench: Bench, doodles: list[Doodle]) -> None:
    """[drawing, image of each seed] of the first drawing of 30 words, taken in alphabetical order."""
    first = {one.word: one for one in reversed(doodles)}
    chosen = [first[name] for name in sorted(first)[:DOODLE_ROWS]]
    maps, asked = [one.draw(bench.settings.size) for one in chosen], [Asked(one.word) for one in chosen]
    columns = [[255 - cv2.merge([one] * 3) for one in maps]]
    for k in range(SEEDS):
        other = replace(bench, settings=replace(bench.settings, seed=bench.settings.seed + 1000 * (k + 1)))
        columns.append(other.draw(asked, maps))
    bench.grid("doodles.png", [tile for row in zip(*columns, strict=True) for tile in row], 9)


def prompt_rows(bench: Bench, art: Art) -> list[Share]:
    """Prompts without any control; says what is drawn in place of what was asked."""
    names = wanted_words(bench.plan.count, np.random.default_rng([bench.settings.seed, 2]), art.words)
    images = bench.draw([Asked(name) for name in names], None)
    bench.grid("prompts.png", images[:GRID_TILES])
    seen = [order[0] for order in bench.judge.order(images)]
    wrong = [f"{name} -> {other}" for name, other in zip(names, seen, strict=True) if name != other]
    print(f"by the prompt alone, instead: {', '.join(wrong)}")
    return [bench.judged("prompt alone", images, names, (0.50, 0.80))]


def seconds_an_image(pipe: Pipeline, doodle: Doodle) -> float:
    """One image from a drawing at default settings, the model loaded; the second call counts."""
    from cldm.request import Request

    for _ in range(2):
        start = time.perf_counter()
        pipe(255 - doodle.draw(512), Request(f"a {doodle.word}"))
        seconds = time.perf_counter() - start
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where --check finds a floor that is missed."""
    parser = Parser("python -m eval.things", __doc__)
    for settings in (ModelFiles, Settings, ThingsScope):
        add_flags(parser, settings)
    parser.set_defaults(config=Path("models/things.yaml"))
    args = parser.parse_args(argv)
    return run_command(
        lambda: _run(*(read_flags(kind, args) for kind in (ModelFiles, Settings, ThingsScope)))
    )


def _run(files: ModelFiles, settings: Settings, plan: ThingsScope) -> int:
    from cldm.recognizer import JUDGE, Judge, load_net

    bench = Bench(files.open(), load_net(Judge, JUDGE), plan, settings)
    rows = measure(bench)
    print("\n".join(map(str, rows)))
    doodle = load_doodles(plan.doodles, set(words()))[0]
    print(f"{len(words())} words; one image takes {seconds_an_image(bench.pipe, doodle):.2f} s")
    if plan.json:
        plan.json.write_text(
            json.dumps([asdict(row) | {"interval": row.interval()} for row in rows], indent=1)
        )
    low = [row.name.strip() for row in rows if row.floor is not None and row.share < row.floor]
    return say(f"below the floor: {'; '.join(low)}", NOT_MET) if plan.check and low else DONE


if __name__ == "__main__":
    raise SystemExit(main())
