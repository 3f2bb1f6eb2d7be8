"""The art: every icon of every word, rendered once, with the lines that a pen would draw of it.

    python -m scenes.things --out training/things

fetches twelve packages by npm (packages.csv), renders the icons of every word by resvg-py, and writes art.npz
and more_art.npz. What is there is kept.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.atomic import atomic_write
from common.shell import Parser, run_command
from scenes.things.fetch import fetch, icons_file
from scenes.things.strokes import Anatomy, anatomy
from scenes.things.words import held_out_styles, styles, words

SIDE = 128  # pixels of a sprite
ART_FILE, MORE_FILE = "art.npz", "more_art.npz"  # of scenes; and what only the recognizer sees beside it
ENDINGS = ("", "-outline", "-variant")  # of an icon's name
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{} {} {} {}">{}</svg>'
)
FOLDER = Path("training/things")
# What a style never had, so that a package without it is no surprise.
NOT_IN = {"fluent-emoji-flat": {"harp", "mermaid", "shovel", "trombone", "red-triangle-pointed-up"}}


@dataclass(frozen=True)
class Sprite:
    """One icon, uint8 [SIDE SIDE 4]."""

    word: str
    style: str
    icon: str
    pixels: np.ndarray
    anatomy: Anatomy


class Art:
    """Sprites by word. held_out: those of the styles kept for tests, else those for training, None: all."""

    def __init__(self, sprites: list[Sprite], held_out: bool | None = False) -> None:
        kept = held_out_styles()
        self.by_word: dict[str, list[Sprite]] = defaultdict(list)
        for sprite in sprites:
            if held_out in (None, kept.get(sprite.word) == sprite.style):
                self.by_word[sprite.word].append(sprite)
        self.words = tuple(self.by_word)


def build_art(folder: Path) -> list[Sprite]:
    """Render every icon of the table from the packages in `folder`; ValueError names icons that are gone."""
    sprites, gone = [], []
    for style in styles("scenes"):
        package = _package(folder, style)
        for word in words().values():
            for icon in word.icons:
                if icon in package["icons"]:
                    sprites.append(_sprite(package, (word.name, style, icon)))
                elif icon not in NOT_IN.get(style, ()):
                    gone.append(f"{style}: {icon} ({word.name})")
    if gone:
        raise ValueError(f"icons that the packages in {folder} do not have: {', '.join(gone)}")
    return sprites


def build_more_art(folder: Path) -> list[Sprite]:
    """Render what further packages show of the words, as far as their icons have the same names."""
    sprites = []
    for style in (*styles("drawings"), *styles("lines")):
        package = _package(folder, style)
        for word in words().values():
            names = (word.name, *word.synonyms)
            wanted = dict.fromkeys([*word.icons, *(name.replace(" ", "-") for name in names)])
            found = [name + end for name in wanted for end in ENDINGS if name + end in package["icons"]]
            sprites += [_sprite(package, (word.name, style, icon)) for icon in found]
    return sprites


def _package(folder: Path, style: str) -> dict:
    return json.loads(icons_file(folder, style).read_text(encoding="utf-8"))


def _sprite(package: dict, names: tuple[str, str, str]) -> Sprite:
    pixels = render_icon(package, names[-1])
    return Sprite(*names, pixels, anatomy(pixels))


def render_icon(package: dict, icon: str, side: int = SIDE) -> np.ndarray:
    """An icon of an Iconify package as uint8 [side side 4], red first, transparent around it."""
    from resvg_py import svg_to_bytes

    entry = package["icons"][icon]
    left, top, width, height = (
        entry.get(key, package.get(key, 0)) for key in ("left", "top", "width", "height")
    )
    largest = max(width, height)  # a few icons are wider than high
    corner = left - (largest - width) / 2, top - (largest - height) / 2
    svg = SVG.format(*corner, largest, largest, entry["body"])
    encoded = svg_to_bytes(svg_string=svg, width=side, height=side)
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


def save_art(sprites: list[Sprite], file: Path) -> Path:
    """Write sprites into one file of arrays."""
    lines = [stroke for sprite in sprites for stroke in sprite.anatomy.strokes]
    with atomic_write(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            names=np.array([(one.word, one.style, one.icon) for one in sprites]),
            pixels=np.stack([one.pixels for one in sprites]),
            body=np.array([one.anatomy.body for one in sprites]),
            rim=np.array([one.anatomy.rim for one in sprites]),
            points=np.concatenate(lines),
            line_lengths=np.array([len(line) for line in lines]),
            line_counts=np.array([len(one.anatomy.strokes) for one in sprites]),
        )
    return file


def load_art(folder: Path = FOLDER, name: str = ART_FILE) -> list[Sprite]:
    """What `save_art` wrote into `folder`; FileNotFoundError says how to make it."""
    file = folder / name
    if not file.exists():
        raise FileNotFoundError(f"there is no {file}: make it by `python -m scenes.things --out {folder}`")
    with np.load(file) as stored:
        data = {name: stored[name] for name in stored.files}
    lines = iter(np.split(data["points"], np.cumsum(data["line_lengths"])[:-1]))
    strokes = [tuple(next(lines) for _ in range(count)) for count in data["line_counts"].tolist()]
    parts = map(Anatomy, strokes, data["body"].tolist(), map(tuple, data["rim"].tolist()))
    return [Sprite(*row) for row in zip(*data["names"].T.tolist(), data["pixels"], parts, strict=True)]


def main(argv: list[str] | None = None) -> int:
    """Fetch and render; says how much art there is."""
    parser = Parser("python -m scenes.things", __doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    return run_command(lambda: make_art(args.out))


def make_art(folder: Path) -> str:
    """Whatever is missing of the art in `folder`; a sentence that says how much there is."""
    new = fetch(folder)
    counts = []
    for name, build in ((ART_FILE, build_art), (MORE_FILE, build_more_art)):
        if new or not (folder / name).exists():
            save_art(build(folder), folder / name)
        counts.append(f"{len(load_art(folder, name))} in {folder / name}")
    return f"drawings of {len(words())} words: {' and '.join(counts)}"
