"""Train what names drawings: the recognizer that ships, and the judge that the evaluation asks.

    python -m trainer.tiny.recognizer --out runs/recognizer --net recognizer --steps 5000
    python -m trainer.tiny.recognizer --out runs/recognizer --net judge --steps 2500

Both learn from `scenes.things` alone. They differ in design, seed and what they see, so that nothing judges
itself: the recognizer sees mostly scribbles of the art for training, cut out and without their background's
colour; the judge sees whole flat pictures of all the art. Both go on from a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cldm.recognizer import SIDE, Judge, Recognizer, look, see
from common.flags import add_flags, read_flags
from common.shell import Parser, run_command
from scenes.things.art import FOLDER, MORE_FILE, Art, load_art
from scenes.things.palette import PALETTE
from scenes.things.scene import ThingScene, lines, random_scene, render
from scenes.things.sketch import Hand, random_hand, scribble
from scenes.things.words import styles, words
from trainer.tiny.command import Run, fit
from trainer.tiny.export import write_half
from trainer.tiny.settings import TinySettings
from trainer.tiny.stages import Stage

DRAWN_AT = 96  # pixels: enough for 64 cut out of it
SCRIBBLES, FILLED = 0.6, 0.15  # shares of what the recognizer sees; the rest are flat pictures
FILLED_LINES = 0.7  # share of a filled drawing's lines that enclose a colour
LOOSE_STRETCH, LOOSE_BEND = 0.3, 2.8  # people's proportions: beyond what scenes allow
LOOSE_HAND, LOOSE_PLAIN = 1.8, 0.5  # their lines
THINNER, PENS = 0.8, 4  # share of thinner pens; by how many pixels, at most
SMOOTHING = 0.05  # of labels: a sofa is nearly a couch
POSED = 0.3  # share of the judge's pictures, as the model draws prompts
BLUR, GRAIN = 1.2, 12.0  # pixels and levels of 255, at most: a generated picture is not as clean as art


def drawing(rng: np.random.Generator, art: Art) -> tuple[Tensor, str]:
    """What the recognizer looks at, of a scribble, a filled drawing or a flat picture, and its word."""
    seen = None
    while seen is None:  # a hand that left everything out drew nothing
        scene = _loose(rng, random_scene(rng, art, alone=True))
        kind = rng.random()
        if scene.things[0].sprite.style in styles("lines"):
            seen = see(_other_pen(rng, render(scene, DRAWN_AT)[1]))
        elif kind >= SCRIBBLES + FILLED:
            seen = see(render(scene, DRAWN_AT)[0])
        else:
            seen = see(_drawn(rng, scene, kind >= SCRIBBLES))
    return torch.from_numpy(seen), scene.things[0].sprite.word


def picture(rng: np.random.Generator, art: Art) -> tuple[Tensor, str]:
    """What the judge looks at, of a picture as a generator might make it, and its word."""
    scene = random_scene(rng, art, alone=True, posed=bool(rng.random() < POSED))
    pixels = render(scene, 2 * SIDE)[0].astype(np.float32)
    if rng.random() < 0.5:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, BLUR))
    pixels += rng.normal(0, GRAIN * rng.random(), pixels.shape)
    return look(pixels.clip(0, 255).astype(np.uint8)), scene.things[0].sprite.word


def _loose(rng: np.random.Generator, scene: ThingScene) -> ThingScene:
    """The thing alone in the middle, in a person's proportions."""
    thing = scene.things[0]
    bend = None if thing.bend is None else thing.bend * np.array([1, 1, 1, LOOSE_BEND, LOOSE_BEND])
    stretch = thing.stretch * float(np.exp(rng.normal(0, LOOSE_STRETCH)))
    thing = replace(thing, centre=(0.5, 0.5), size=0.75, bend=bend, stretch=stretch)
    return replace(scene, things=(thing,))


def _other_pen(rng: np.random.Generator, icon: np.ndarray) -> np.ndarray:
    """An icon that is lines already, mostly by a thinner pen: designers' are thick."""
    change = cv2.erode if rng.random() < THINNER else cv2.dilate
    return change(icon, np.ones((1 + rng.integers(PENS),) * 2, np.uint8))


def _drawn(rng: np.random.Generator, scene: ThingScene, filled: bool) -> np.ndarray:
    """A scribble, uint8 [H W], by a hand that knows better what it means than how it looks; or coloured."""
    hand = random_hand(rng)
    hand = Hand(hand.width, hand.kept, LOOSE_HAND * hand.coarse, LOOSE_HAND * hand.wobble,
                LOOSE_HAND * hand.misplaced, hand.gaps, LOOSE_PLAIN * rng.random())  # fmt: skip
    line = scribble(rng, scene, DRAWN_AT, hand)
    if not filled:
        return line
    page, colours = np.full((DRAWN_AT, DRAWN_AT, 3), 255, np.uint8), list(PALETTE.values())
    for stroke in lines(scene.things[0]):
        if rng.random() < FILLED_LINES:
            points = np.rint(stroke * DRAWN_AT).astype(np.int32)
            cv2.fillPoly(page, [points], colours[rng.integers(len(colours))])
    return np.where(line[..., None] > 0, 255 - line[..., None], page)


@dataclass(frozen=True)
class Net:
    """A classifier of the words, what it looks at of which art in a folder, and its seed."""

    build: Callable[[tuple[str, ...]], nn.Module]
    draw: Callable[[np.random.Generator, Art], tuple[Tensor, str]]
    art: Callable[[Path], Art]
    seed: int


class Examples(Dataset):
    """What a net learns from: {"image": [3 64 64], "word": its number}; example i is the same everywhere."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.art: Art | None = None  # each worker process loads its own
        self.words = list(words())

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        self.art = self.art or self.net.art(self.folder)
        image, word = self.net.draw(np.random.default_rng([self.net.seed, 21, index]), self.art)
        return {"image": image, "word": self.words.index(word)}


def loss(model: nn.Module, batch: dict, noise: torch.Generator) -> Tensor:
    """Cross-entropy of the words."""
    model.train()  # `Run` leaves the mode alone, and batch norm has two
    with torch.autocast("cpu", torch.bfloat16):  # faster where the CPU multiplies it
        logits = model(batch["image"])
    return F.cross_entropy(logits.float(), batch["word"], label_smoothing=SMOOTHING)


def stage(name: str) -> Stage:
    """As much of a stage as a classifier needs."""
    return Stage(name, 5000, 64, 2e-3, lambda model: model, loss, lambda *_: None, lambda *_: None)


def main(argv: list[str] | None = None) -> int:
    """Train one of the networks up to --steps and write its file."""
    parser = Parser("python -m trainer.tiny.recognizer", __doc__)
    parser.add_argument("--net", choices=list(NETS), default="recognizer", help="which one")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--art", type=Path, default=FOLDER, help="drawings of things (default: %(default)s)")
    add_flags(parser, TinySettings)
    args = parser.parse_args(argv)
    settings = read_flags(TinySettings, args)
    stopped = f"stopped; the same command goes on from {settings.out}"
    return run_command(lambda: _train(args.net, args.art, args.steps, settings), stopped=stopped)


def _train(name: str, art: Path, steps: int, settings: TinySettings) -> Path:
    net = NETS[name]
    torch.manual_seed(net.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    model = net.build(tuple(words())).to(memory_format=torch.channels_last)
    run = Run(stage(name), model, settings.out / f"{name}.pt")
    fit(run, model, Examples(net, art), settings, steps)
    run.use_average()
    return save(model, settings.out / f"{name}.safetensors")


def save(model: Recognizer | Judge, path: Path) -> Path:
    """Write a network in half precision, its words beside it."""
    return write_half(path, model.state_dict(), "trainer.tiny.recognizer", words=json.dumps(model.words))


NETS = {
    "recognizer": Net(
        Recognizer, drawing, lambda folder: Art([*load_art(folder), *load_art(folder, MORE_FILE)]), 1
    ),
    "judge": Net(Judge, picture, lambda folder: Art(load_art(folder), held_out=None), 2),
}

if __name__ == "__main__":
    raise SystemExit(main())
