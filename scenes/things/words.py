"""The words that the things model knows: what people are asked to draw, and the icons that show it.

The table words.csv has a line for each: the word as the game Quick, Draw! says it (eleven are ours), the
names of its icons in the art's packages, other English words for it, and its Korean word.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

TABLE = Path(__file__).with_name("words.csv")
STYLES = ("noto", "fluent-emoji-flat", "twemoji")  # of the art, each a package of icons
HELD_OUT_WORDS = 40  # whose drawing in one of the styles is kept for tests
HELD_OUT_ONE_IN = 20  # combinations of thing and colour


@dataclass(frozen=True)
class Word:
    """One line of the table; `icons` are names in the packages, all of the same thing."""

    name: str
    icons: tuple[str, ...]
    synonyms: tuple[str, ...]
    korean: str


@cache
def words() -> dict[str, Word]:
    """Every word by its name, in the order of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [
            Word(row["word"], tuple(row["icons"].split()), _list(row["synonyms"]), row["korean"])
            for row in csv.DictReader(file)
        ]
    return {row.name: row for row in rows}


@cache
def held_out_styles() -> dict[str, str]:
    """The style that is held out, for the words that have one: a fixed rule (CRC-32)."""
    order = sorted(words(), key=lambda name: crc32(name.encode()))
    return {name: STYLES[crc32(name.encode()) % len(STYLES)] for name in order[:HELD_OUT_WORDS]}


def is_held_out(word: str, colour: str) -> bool:
    """Whether a thing in this colour is kept for tests (CRC-32)."""
    return crc32(f"{word}/{colour}".encode()) % HELD_OUT_ONE_IN == 0


def _list(field: str) -> tuple[str, ...]:
    return tuple(part for part in field.split(";") if part)
