"""Measures the model of everyday things: is it the word, are the lines followed, are the colours those named?

    python -m eval.things --config models/things.yaml --check

draws sketches of art in a style that no training saw, takes people's drawings, and prompts without control;
a judge that knows the art names what it sees. Each row is a share of n pictures with its Wilson interval,
beside the floor that a model must pass to be the default, and the aim.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from common.flags import add_flags, flag, read_flags
from common.shell import DONE, NOT_MET, Parser, run_command, say
from eval.doodles import FOLDER as DOODLES
from eval.doodles import Doodle, load_doodles
from eval.fill50k import ModelFiles, Settings, autoencode, generate
from eval.thing_scores import Share, colours_named, lines_followed, save_grid
from scenes.things.art import FOLDER, Art, load_art
from scenes.things.scene import ThingScene, random_scene, render
from scenes.things.sketch import scribble
from scenes.things.words import words

if TYPE_CHECKING:
    from cldm.judge import Judge
    from cldm.pipeline import Pipeline

DOODLE_ROWS = 30  # words, in alphabetical order
SEEDS = 2


@dataclass(frozen=True)
class Plan:
    """How much is measured, with what, and what becomes of it."""

    count: int = flag(100, "pictures a row")
    art: Path = flag(FOLDER, "drawings of things")
    doodles: Path = flag(DOODLES, "drawings by people")
    json: Path | None = flag(None, "write every row to this file")
    grids: Path | None = flag(None, "write grids of unpicked pictures into this folder")
    check: bool = flag(False, "end with code 1 if a floor is missed")


def wanted_words(count: int, rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    """So many words, every one before any comes twice."""
    order: list[str] = []
    while len(order) < count:
        order += [names[i] for i in rng.permutation(len(names))]
    return order[:count]


def sketched_scenes(count: int, art: Art, seed: int) -> tuple[list[ThingScene], list[np.ndarray]]:
    """Scenes of one thing each in held-out art, and scribbles of them, uint8 [H W 3]."""
    rng = np.random.default_rng([seed, 1])
    names = wanted_words(count, rng, art.words)
    scenes = [random_scene(rng, art, alone=True, held_out=True, word=name) for name in names]
    return scenes, [cv2.cvtColor(scribble(rng, scene, 128), cv2.COLOR_GRAY2RGB) for scene in scenes]


def measure(pipe: Pipeline, judge: Judge, plan: Plan, settings: Settings) -> list[Share]:
    """Every row but those of words, time and quantization."""
    sprites = load_art(plan.art)
    held_out, everything = Art(sprites, held_out=True), Art(sprites, held_out=None)
    rows = _judge_itself(pipe, judge, everything, plan.count, settings)
    scenes, hints = sketched_scenes(plan.count, held_out, settings.seed)
    images = generate(pipe, scenes, hints, settings)
    names = [scene.things[0].sprite.word for scene in scenes]
    ranks = judge.ranks(images, names)
    rows += [Share("sketch of held-out art: the word, top-1", int((ranks < 1).sum()), len(ranks), 0.80, 0.92)]
    f1 = lines_followed(images, hints)
    rows += [Share("  its lines followed (mean F1 within 3 px)", float(f1.sum()), len(f1), 0.70, 0.85)]
    rows += _colours(images, scenes)
    if plan.grids:
        save_grid(
            plan.grids / "sketches.png", [p for pair in zip(hints, images, strict=True) for p in pair][:64]
        )
    doodles = load_doodles(plan.doodles, set(words()))
    rows += _doodles(pipe, judge, doodles, plan, settings)
    rng = np.random.default_rng([settings.seed, 2])
    names = wanted_words(plan.count, rng, everything.words)
    images = generate(pipe, [_Asked(f"a {name}", name) for name in names], None, settings)
    ranks = judge.ranks(images, names)
    rows += [Share("prompt alone: the word, top-1", int((ranks < 1).sum()), len(ranks), 0.50, 0.80)]
    if plan.grids:
        save_grid(plan.grids / "prompts.png", images[:64])
        _say_failures(names, images, judge)
    return rows


@dataclass(frozen=True)
class _Asked:
    """As much of a scene as generation needs."""

    prompt: str
    word: str


def _judge_itself(pipe: Pipeline, judge: Judge, art: Art, count: int, settings: Settings) -> list[Share]:
    rng = np.random.default_rng([settings.seed, 3])
    names = wanted_words(count, rng, art.words)
    real = [render(random_scene(rng, art, alone=True, word=name), settings.size)[0] for name in names]
    ranks = judge.ranks(real, names)
    again = judge.ranks(autoencode(pipe, real), names)
    return [
        Share("the judge on real art, top-1", int((ranks < 1).sum()), count, 0.95, 0.95),
        Share("  through the autoencoder", int((again < 1).sum()), count),
    ]


def _colours(images: Sequence[np.ndarray], scenes: Sequence[ThingScene]) -> list[Share]:
    things, backgrounds = colours_named(images, scenes)
    said = np.array([scene.things[0].colour is not None for scene in scenes])
    grounds = np.array([scene.said_background for scene in scenes])
    both = things & backgrounds
    either = said | grounds
    return [
        Share("  named colours within 40/255", int(both[either].sum()), int(either.sum()), 0.80, 0.95),
        Share("    the thing's", int(things[said].sum()), int(said.sum())),
        Share("    the background's", int(backgrounds[grounds].sum()), int(grounds.sum())),
    ]


def _doodles(
    pipe: Pipeline, judge: Judge, doodles: list[Doodle], plan: Plan, settings: Settings
) -> list[Share]:
    from cldm.recognizer import load_recognizer

    recognizer = load_recognizer()
    told = [[word for word, _ in recognizer.top(255 - one.draw(256))] for one in doodles]
    first = sum(answer[:1] == [one.word] for answer, one in zip(told, doodles, strict=True))
    five = sum(one.word in answer for answer, one in zip(told, doodles, strict=True))
    rng = np.random.default_rng([settings.seed, 4])
    some = [doodles[i] for i in rng.permutation(len(doodles))[: plan.count]]
    hints = [cv2.cvtColor(one.draw(settings.size), cv2.COLOR_GRAY2RGB) for one in some]
    images = generate(pipe, [_Asked(f"a {one.word}", one.word) for one in some], hints, settings)
    ranks = judge.ranks(images, [one.word for one in some])
    f1 = lines_followed(images, hints)
    if plan.grids:
        _doodle_grid(pipe, doodles, plan.grids / "doodles.png", settings)
    return [
        Share("drawing by a person: the word, top-1", int((ranks < 1).sum()), len(some), 0.50, 0.70),
        Share("drawing by a person: the word, top-5", int((ranks < 5).sum()), len(some), 0.75, 0.90),
        Share("  its lines followed (mean F1 within 3 px)", float(f1.sum()), len(f1), 0.70, 0.85),
        Share("recognizer on drawings by people, top-1", first, len(doodles), 0.35, 0.55),
        Share("recognizer on drawings by people, top-5", five, len(doodles), 0.60, 0.80),
    ]


def _doodle_grid(pipe: Pipeline, doodles: list[Doodle], path: Path, settings: Settings) -> None:
    """[drawing, picture of each seed] of the first drawing of 30 words, taken in alphabetical order."""
    by_word = {one.word: one for one in reversed(doodles)}
    chosen = [by_word[name] for name in sorted(by_word)[:DOODLE_ROWS]]
    hints = [cv2.cvtColor(one.draw(settings.size), cv2.COLOR_GRAY2RGB) for one in chosen]
    asked = [_Asked(f"a {one.word}", one.word) for one in chosen]
    seeds = [generate(pipe, asked, hints, Settings(**{**asdict(settings), "seed": settings.seed + 1000 * k}))
             for k in range(SEEDS)]  # fmt: skip
    save_grid(
        path, [tile for row in zip([255 - hint for hint in hints], *seeds, strict=True) for tile in row], 9
    )


def _say_failures(names: Sequence[str], images: Sequence[np.ndarray], judge: Judge) -> None:
    wrong = [(name, judge.best(image)) for name, image in zip(names, images, strict=True)]
    print("instead: " + ", ".join(f"{name} -> {seen}" for name, seen in wrong if name != seen))


def seconds_a_picture(pipe: Pipeline, doodle: Doodle) -> float:
    """One picture from a drawing at default settings, the model loaded; the second call counts."""
    from cldm.request import Request

    for _ in range(2):
        start = time.perf_counter()
        pipe(255 - doodle.draw(512), Request(f"a {doodle.word}"))
        seconds = time.perf_counter() - start
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where --check finds a floor that is missed."""
    parser = Parser("python -m eval.things", __doc__)
    for settings in (ModelFiles, Settings, Plan):
        add_flags(parser, settings)
    parser.set_defaults(config=Path("models/things.yaml"))
    args = parser.parse_args(argv)
    files, settings, plan = (read_flags(kind, args) for kind in (ModelFiles, Settings, Plan))
    return run_command(lambda: _run(files, settings, plan))


def _run(files: ModelFiles, settings: Settings, plan: Plan) -> int:
    from cldm.judge import load_judge

    judge, pipe = load_judge(), files.open()
    rows = measure(pipe, judge, plan, settings)
    for row in rows:
        print(row)
    doodle = load_doodles(plan.doodles, set(words()))[0]
    print(f"{len(words())} words; one picture takes {seconds_a_picture(pipe, doodle):.2f} s")
    if plan.json:
        plan.json.write_text(
            json.dumps([{**asdict(row), "interval": row.interval()} for row in rows], indent=1)
        )
    low = [row.name.strip() for row in rows if row.floor is not None and row.share < row.floor]
    if plan.check and low:
        return say(f"below the floor: {'; '.join(low)}", NOT_MET)
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
