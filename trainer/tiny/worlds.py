"""The two worlds that tiny models draw: shapes, whose truth is known, and things that people doodle.

A world draws scenes, their targets, maps and facts; the rest of training is the same. A yaml names its own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
from omegaconf import DictConfig

from scenes import shape_scenes
from scenes.colours import COLOURS
from scenes.shapes import SHAPES
from scenes.things.art import Art, load_art
from scenes.things.palette import PALETTE
from scenes.things.scene import ThingScene, random_scene, render
from scenes.things.sketch import random_map
from scenes.things.words import words

HAND_DRAWN = 0.5  # half of the scenes are wobbled: people's outlines are
BINARY_HINTS = 0.5  # annotators give black and white, renderings have soft edges: the branch sees both
BINARY_THRESHOLD = 64  # of 255: a soft edge a quarter covered is still a line
POSED_SHIFT, POSED_RADIUS = 0.06, (0.28, 0.38)  # of the side
POSED_TILT = np.pi / 36  # 5 degrees
WIDTHS = (1.0, 24.0)  # of lines, pixels at 512
WORD_CODE, SECOND_CODE = 48, 24  # numbers that tell 253 words apart, of the first and of the second thing
CODES_SEED = 17  # any; codes of another seed are another encoder's
LOUD = 3.0  # what is said of colours, beside the many signs of a word: at 1 it went unheard


class ShapesWorld:
    """Plain shapes in named colours. stages: what its model is made by; names: of what is drawn."""

    stages = ("vae", "decoder", "text", "base", "unet", "control")
    names = SHAPES

    def scene(self, rng: np.random.Generator, posed: float) -> shape_scenes.Scene:
        """A scene; with probability `posed` one shape upright, exact, large and near the middle."""
        scene = shape_scenes.random_scene(rng, hand_drawn=HAND_DRAWN, widths=WIDTHS)
        return _posed(scene, rng) if rng.random() < posed else scene

    def target(self, scene: shape_scenes.Scene, side: int) -> np.ndarray:
        """The picture, uint8 [side side 3]."""
        return shape_scenes.render(scene, side)[1]

    def hint(self, scene: shape_scenes.Scene, rng: np.random.Generator, side: int) -> np.ndarray:
        """The outline, uint8 [side side 3], with another pen each time the scene comes round."""
        width = float(np.exp(rng.uniform(*np.log(WIDTHS))))
        source = shape_scenes.render(replace(scene, width=width), side)[0]
        if rng.random() < BINARY_HINTS:
            source = cv2.threshold(source, BINARY_THRESHOLD, 255, cv2.THRESH_BINARY)[1]
        return source

    def facts(self, scene: shape_scenes.Scene) -> np.ndarray:
        """What the prompt says, [n]: fill and background in [-1, 1], then 1 for the shape named."""
        colours = np.array([COLOURS[scene.fill], COLOURS[scene.background]], np.float32).ravel() / 127.5 - 1
        return np.concatenate([colours, np.array([name == scene.shape for name in SHAPES], np.float32)])


class ThingsWorld:
    """Everyday things by icon artists; `folder` has what `python -m scenes.things` made."""

    stages = ("vae", "text", "joint")

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, tuple(words())

    @cached_property
    def art(self) -> Art:
        """Loaded where it is first needed: each worker process has its own."""
        return Art(load_art(self.folder))

    def scene(self, rng: np.random.Generator, posed: float) -> ThingScene:
        """As of shapes."""
        return random_scene(rng, self.art, posed=bool(rng.random() < posed))

    def target(self, scene: ThingScene, side: int) -> np.ndarray:
        """As of shapes."""
        return render(scene, side)[0]

    def hint(self, scene: ThingScene, rng: np.random.Generator, side: int) -> np.ndarray:
        """A scribble, or now and then another kind of map."""
        return cv2.cvtColor(random_map(rng, scene, side), cv2.COLOR_GRAY2RGB)

    def facts(self, scene: ThingScene) -> np.ndarray:
        """Codes of both things and their colours, then the background; zeros for what is not said."""
        first, second = scene.things[0], scene.things[1] if len(scene.things) == 2 else None
        background = scene.background if scene.said_background else None
        parts = [
            _code(first.sprite.word)[:WORD_CODE],
            _code(second.sprite.word)[:SECOND_CODE] if second else np.zeros(SECOND_CODE, np.float32),
            _said(first.colour), _said(second.colour if second else None), _said(background),
        ]  # fmt: skip
        return np.concatenate(parts)


def _posed(scene: shape_scenes.Scene, rng: np.random.Generator) -> shape_scenes.Scene:
    """The same shape and colours, drawn exactly, upright, large and near the middle."""
    centre = tuple((0.5 + rng.uniform(-POSED_SHIFT, POSED_SHIFT, size=2)).tolist())
    tilt = rng.uniform(-POSED_TILT, POSED_TILT)
    return replace(scene, centre=centre, radius=rng.uniform(*POSED_RADIUS), angle=tilt, wobble=0.0, gaps=())


def _code(word: str) -> np.ndarray:
    """A word as signs, any two of them about half different: 253 words need not one number each."""
    rng = np.random.default_rng([CODES_SEED, list(words()).index(word)])
    return rng.choice([-1.0, 1.0], WORD_CODE).astype(np.float32)


def _said(colour: str | None) -> np.ndarray:
    """Whether a colour is said, and which: [4]."""
    if colour is None:
        return np.zeros(4, np.float32)
    said = np.concatenate([[1.0], np.array(PALETTE[colour], np.float32) / 127.5 - 1])
    return (LOUD * said).astype(np.float32)


World = ShapesWorld | ThingsWorld


def world_of(config: DictConfig, art: Path) -> World:
    """The world that a yaml names, shapes if it names none; art: the folder of drawings for things."""
    worlds = {"shapes": ShapesWorld, "things": partial(ThingsWorld, art)}
    name = config.get("world", "shapes")
    if name not in worlds:
        raise ValueError(f"world: {name} is unknown: use one of {', '.join(worlds)}")
    return worlds[name]()
