"""A scene of things: one or two sprites, bent, turned, mirrored and perhaps repainted, on a plain background.

`render` draws it and `lines` gives the strokes that outline it, both bent by the same field: they agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from scenes.things.art import Art, Sprite
from scenes.things.palette import PALETTE, repaint, stands_out, unsaid_background
from scenes.things.prompts import phrase, sentence
from scenes.things.words import is_held_out, words

TWO_THINGS = 0.2
REPAINTED = 1 / 3
SAID_BACKGROUND = 0.65
SIZES = (0.35, 0.95)  # of the side; large ones more often, as people fill the page
TILT = 0.2  # radians, one standard deviation
STRETCH = 0.14  # standard deviation of the logarithm of width to height
BEND = (0.0, 0.05)  # of the thing's size: how far its farthest point moves
WAVES = 3
POSED_SIZE, POSED_SHIFT, POSED_TILT = (0.7, 0.85), 0.04, 0.06
PAIR_SIZE = (0.4, 0.5)
SMALL = 80  # pixels: below it half a sprite is sharper than a whole one


@dataclass(frozen=True)
class Placed:
    """A sprite in a picture, in units of the side. bend: [WAVES 5] of frequencies, phase and direction."""

    sprite: Sprite
    centre: tuple[float, float]
    size: float
    angle: float = 0.0
    stretch: float = 1.0
    mirrored: bool = False
    colour: str | None = None
    bend: np.ndarray | None = None


@dataclass(frozen=True)
class ThingScene:
    """What is drawn and how it is called."""

    things: tuple[Placed, ...]
    background: str
    said_background: bool
    prompt: str
    posed: bool = False


def random_scene(
    rng: np.random.Generator,
    art: Art,
    *,
    posed: bool = False,
    alone: bool = False,
    held_out: bool | None = False,
    word: str | None = None,
) -> ThingScene:
    """Draw a scene. posed: one upright thing, large and in the middle; alone: one thing, anywhere.

    held_out: only combinations of thing and colour for training (False), only for tests (True), or any.
    word: of the first thing, else any, all equally often.
    """
    count = 2 if not (posed or alone) and rng.random() < TWO_THINGS else 1
    names = [word or _any(rng, art.words), _any(rng, art.words)][:count]
    sprites = [_any(rng, art.by_word[name]) for name in names]
    background, said = _background(rng, sprites)
    colours = [_colour(rng, sprite, background, held_out) for sprite in sprites]
    place = _posed if posed else _anywhere
    things = tuple(place(rng, sprite, colour, (i, count))
                   for i, (sprite, colour) in enumerate(zip(sprites, colours, strict=True)))  # fmt: skip
    phrases = [
        phrase(rng, words()[sprite.word], colour) for sprite, colour in zip(sprites, colours, strict=True)
    ]
    return ThingScene(things, background, said, sentence(rng, phrases, background if said else None), posed)


def render(scene: ThingScene, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Target uint8 [side side 3], and how much of each pixel is thing, uint8 [side side]."""
    target = np.empty((side, side, 3), np.float32)
    target[:] = PALETTE[scene.background]
    cover = np.zeros((side, side), np.float32)
    for thing in scene.things:
        paint, alpha = _warped(thing, side)
        target = target * (1 - alpha[..., None]) + paint
        cover = np.maximum(cover, alpha)
    return np.rint(target).clip(0, 255).astype(np.uint8), np.rint(cover * 255).astype(np.uint8)


def lines(thing: Placed) -> list[np.ndarray]:
    """The thing's strokes where they are in the picture, polylines [n 2] in units of the side."""
    matrix = _to_picture(thing)
    placed = []
    for stroke in thing.sprite.anatomy.strokes:
        source = stroke.astype(np.float64) - 0.5
        bent = source
        for _ in range(3):  # the field says where a bent point comes from: turn it round
            bent = source - _bend(thing, bent)
        placed.append(bent @ matrix.T + thing.centre)
    return placed


def _any(rng: np.random.Generator, choices: list | tuple) -> object:
    return choices[rng.integers(len(choices))]


def _background(rng: np.random.Generator, sprites: list[Sprite]) -> tuple[str, bool]:
    if rng.random() >= SAID_BACKGROUND:
        return unsaid_background(sprites[0].anatomy.rim), False
    fitting = [name for name in PALETTE if all(stands_out(sprite.anatomy.rim, name) for sprite in sprites)]
    return _any(rng, fitting or list(PALETTE)), True


def _colour(rng: np.random.Generator, sprite: Sprite, background: str, held_out: bool | None) -> str | None:
    if rng.random() >= REPAINTED:
        return None
    fitting = [
        name for name in PALETTE
        if stands_out(PALETTE[name], background) and held_out in (None, is_held_out(sprite.word, name))
    ]  # fmt: skip
    return _any(rng, fitting) if fitting else None


def _posed(rng: np.random.Generator, sprite: Sprite, colour: str | None, _: tuple[int, int]) -> Placed:
    centre = 0.5 + rng.uniform(-POSED_SHIFT, POSED_SHIFT, size=2)
    angle = rng.uniform(-POSED_TILT, POSED_TILT)
    return Placed(sprite, tuple(centre.tolist()), rng.uniform(*POSED_SIZE), angle, colour=colour)


def _anywhere(rng: np.random.Generator, sprite: Sprite, colour: str | None, which: tuple[int, int]) -> Placed:
    number, count = which
    low, high = SIZES if count == 1 else PAIR_SIZE
    size = high - (high - low) * rng.random() ** 1.5
    room = max(0.0, 1 - size) / 2
    centre = 0.5 + rng.uniform(-room, room, size=2)
    if count == 2:
        centre[0] = 0.26 + 0.48 * number + rng.uniform(-0.02, 0.02)
    frequency = rng.uniform(0.3, 1.5, (WAVES, 2)) * rng.choice([-1, 1], (WAVES, 2))
    direction = rng.normal(size=(WAVES, 2)) * rng.uniform(*BEND) / np.sqrt(WAVES)
    bend = np.concatenate([frequency, rng.uniform(0, 2 * np.pi, (WAVES, 1)), direction], axis=1)
    return Placed(
        sprite, tuple(centre.tolist()), size, rng.normal(0, TILT), float(np.exp(rng.normal(0, STRETCH))),
        bool(rng.random() < 0.5), colour, bend,
    )  # fmt: skip


def _to_picture(thing: Placed) -> np.ndarray:
    """Matrix [2 2] from the sprite's own units to those of the picture."""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    across = thing.size * min(1.0, thing.stretch) * (-1 if thing.mirrored else 1)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([across, thing.size * min(1.0, 1 / thing.stretch)])


def _bend(thing: Placed, points: np.ndarray) -> np.ndarray:
    """How much farther than [... 2] the sprite's pixel lies that is seen there."""
    if thing.bend is None:
        return np.zeros_like(points)
    frequency, phase, direction = thing.bend[:, :2], thing.bend[:, 2], thing.bend[:, 3:]
    return np.sin(2 * np.pi * points @ frequency.T + phase) @ direction


def _warped(thing: Placed, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint, times its coverage, float [side side 3], and the coverage in [0, 1]."""
    pixels = thing.sprite.pixels
    if thing.colour:
        painted = repaint(pixels[..., :3], thing.sprite.anatomy.body, thing.colour)
        pixels = np.concatenate([painted, pixels[..., 3:]], axis=2)
    layer = pixels.astype(np.float32)
    layer[..., :3] *= layer[..., 3:] / 255
    if thing.size * side < SMALL:
        layer = cv2.resize(layer, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    axis = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(axis, axis), axis=-1) - thing.centre
    own = grid @ np.linalg.inv(_to_picture(thing)).T
    source = ((own + _bend(thing, own) + 0.5) * len(layer) - 0.5).astype(np.float32)
    out = cv2.remap(layer, source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return out[..., :3], out[..., 3] / 255
