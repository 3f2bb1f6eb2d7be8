"""Train what names drawings: the recognizer that ships, and the judge that the evaluation asks.

    python -m trainer.tiny.recognizer --out runs/recognizer --net recognizer --steps 4000
    python -m trainer.tiny.recognizer --out runs/recognizer --net judge --steps 3000

Both learn from `scenes.things` alone. They differ in design, seed and what they see, so that nothing
judges itself: the recognizer sees mostly scribbles of the art for training, cut out and without their
background's colour; the judge sees whole flat pictures of all the art. Both go on from a checkpoint, as
`trainer.tiny` does.
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
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from cldm.judge import SIDE, Judge, look
from cldm.recognizer import Recognizer, see
from common.atomic import atomic_write
from common.flags import add_flags, read_flags
from common.shell import Parser, run_command
from scenes.things.art import FOLDER, Art, load_art
from scenes.things.palette import PALETTE
from scenes.things.scene import ThingScene, lines, random_scene, render
from scenes.things.sketch import Hand, random_hand, scribble
from scenes.things.words import words
from trainer.tiny.command import Run, fit
from trainer.tiny.settings import TinySettings
from trainer.tiny.stages import Stage

DRAWN_AT = 96  # pixels: enough for 64 cut out of it
SCRIBBLES, FILLED = 0.6, 0.15  # shares of what the recognizer sees; the rest are flat pictures
LOOSE_STRETCH, LOOSE_BEND = 0.3, 2.8  # people's proportions: beyond what scenes allow
LOOSE_HAND, LOOSE_PLAIN = 1.8, 0.5  # their lines
SMOOTHING = 0.05  # of labels: a sofa is nearly a couch
BLUR, GRAIN = 1.2, 12.0  # pixels and levels of 255, at most: a generated picture is not as clean as art


class Drawings(Dataset):
    """What the recognizer learns from: {"image": [3 64 64], "word": its number}."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.art: Art | None = None

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        self.art = self.art or Art(load_art(self.folder))
        rng = np.random.default_rng([self.seed, 21, index])
        seen = None
        while seen is None:  # a hand that left everything out drew nothing
            scene = _loose(rng, random_scene(rng, self.art, alone=True))
            seen = see(_drawing(rng, scene))
        return {"image": torch.from_numpy(seen), "word": _number(scene)}


class Pictures(Dataset):
    """What the judge learns from: flat pictures, {"image": [3 64 64] in [-1, 1], "word": its number}."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.art: Art | None = None

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        self.art = self.art or Art(load_art(self.folder), held_out=None)
        rng = np.random.default_rng([self.seed, 22, index])
        scene = random_scene(rng, self.art, alone=True, posed=bool(rng.random() < 0.3))
        picture = render(scene, 2 * SIDE)[0].astype(np.float32)
        if rng.random() < 0.5:
            picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, BLUR))
        picture = picture + rng.normal(0, GRAIN * rng.random(), picture.shape)
        return {"image": look(picture.clip(0, 255).astype(np.uint8)), "word": _number(scene)}


def _number(scene: ThingScene) -> int:
    return list(words()).index(scene.things[0].sprite.word)


def _loose(rng: np.random.Generator, scene: ThingScene) -> ThingScene:
    thing = scene.things[0]
    bend = None if thing.bend is None else thing.bend * np.array([1, 1, 1, LOOSE_BEND, LOOSE_BEND])
    return replace(scene, things=(replace(
        thing, centre=(0.5, 0.5), size=0.75, bend=bend, angle=thing.angle * 0.7,
        stretch=thing.stretch * float(np.exp(rng.normal(0, LOOSE_STRETCH))),
    ),))  # fmt: skip


def _loose_hand(rng: np.random.Generator) -> Hand:
    """A hand that knows what it means better than how it looks."""
    hand = random_hand(rng)
    return replace(
        hand, misplaced=LOOSE_HAND * hand.misplaced, coarse=LOOSE_HAND * hand.coarse,
        wobble=LOOSE_HAND * hand.wobble, plain=LOOSE_PLAIN * rng.random(),
    )  # fmt: skip


def _drawing(rng: np.random.Generator, scene: ThingScene) -> np.ndarray:
    """A scribble, a filled drawing or the flat picture."""
    kind = rng.random()
    if kind >= SCRIBBLES + FILLED:
        return render(scene, DRAWN_AT)[0]
    line = scribble(rng, scene, DRAWN_AT, _loose_hand(rng))
    if kind < SCRIBBLES:
        return line
    paper = np.full((DRAWN_AT, DRAWN_AT, 3), 255, np.uint8)
    colours = list(PALETTE.values())
    for stroke in lines(scene.things[0]):
        if rng.random() < 0.7:
            colour = colours[rng.integers(len(colours))]
            cv2.fillPoly(paper, [np.rint(stroke * DRAWN_AT).astype(np.int32)], colour)
    return np.where(line[..., None] > 0, 255 - line[..., None], paper)


def loss(model: nn.Module, batch: dict, noise: torch.Generator) -> Tensor:
    """Cross-entropy of the words."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch["image"])
    return F.cross_entropy(logits.float(), batch["word"], label_smoothing=SMOOTHING)


@dataclass(frozen=True)
class Net:
    """A classifier, what it learns from, and its seed."""

    build: Callable[[], nn.Module]
    data: Callable[[Path, int], Dataset]
    seed: int
    stage: Stage


def _stage(name: str) -> Stage:
    def nothing(model: nn.Module, settings: TinySettings) -> None:
        """Nothing to prepare."""

    return Stage(name, 4000, 64, 2e-3, lambda model: model, loss, nothing, nothing, on_latents=False)


def main(argv: list[str] | None = None) -> int:
    """Train one of the networks up to --steps and write its file."""
    parser = Parser("-m trainer.tiny.recognizer", __doc__)
    parser.add_argument("--net", choices=list(NETS), default="recognizer", help="which one")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--art", type=Path, default=FOLDER, help="drawings of things (default: %(default)s)")
    add_flags(parser, TinySettings)
    args = parser.parse_args(argv)
    settings = read_flags(TinySettings, args)

    def act() -> Path:
        net = NETS[args.net]
        torch.manual_seed(net.seed)
        settings.out.mkdir(parents=True, exist_ok=True)
        model = net.build().to(memory_format=torch.channels_last)
        run = Run(net.stage, model, settings.out / f"{args.net}.pt")
        fit(run, model, net.data(args.art, net.seed), settings, args.steps)
        run.use_average()
        return save(model, settings.out / f"{args.net}.safetensors")

    return run_command(act, stopped=f"stopped; the same command goes on from {settings.out}")


def save(model: nn.Module, path: Path) -> Path:
    """Write a network in half precision, its words beside it."""
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    about = {"format": "pt", "words": json.dumps(model.words)}
    if isinstance(model, Recognizer):
        about["widths"] = json.dumps(model.widths)
    with atomic_write(path) as partial:
        save_file({name: value.contiguous() for name, value in state.items()}, partial, metadata=about)
    return path


NETS = {
    "recognizer": Net(lambda: Recognizer(tuple(words())), Drawings, 1, _stage("recognizer")),
    "judge": Net(lambda: Judge(tuple(words())), Pictures, 2, _stage("judge")),
}

if __name__ == "__main__":
    raise SystemExit(main())
