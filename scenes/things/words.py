"""The tables: words that the things model knows, its colours, and the packages that its art comes from.

words.csv: the word as the game Quick, Draw! says it (eleven are ours), its icons' names in the packages,
other English words for it, the Korean word. packages.csv says what a package shows: `scenes`, or to the
recognizer alone further `drawings`, or `lines` in one colour.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

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
def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table beside this file."""
    with Path(__file__).with_name(f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def words() -> dict[str, Word]:
    """Every word by its name, in the order of the table."""
    rows = ((row, filter(None, row["synonyms"].split(";"))) for row in read_table("words"))
    table = (Word(row["word"], tuple(row["icons"].split()), tuple(also), row["korean"]) for row, also in rows)
    return {word.name: word for word in table}


def styles(shown: str) -> tuple[str, ...]:
    """The packages that show `scenes`, `drawings` or `lines`, each in a style of its own."""
    return tuple(row["package"] for row in read_table("packages") if row["shows"] == shown)


@cache
def held_out_styles() -> dict[str, str]:
    """The style that is held out, for the words that have one: a fixed rule (CRC-32)."""
    order, kinds = sorted(words(), key=lambda name: crc32(name.encode())), styles("scenes")
    return {name: kinds[crc32(name.encode()) % len(kinds)] for name in order[:HELD_OUT_WORDS]}


def is_held_out(word: str, colour: str) -> bool:
    """Whether a thing in this colour is kept for tests (CRC-32)."""
    return crc32(f"{word}/{colour}".encode()) % HELD_OUT_ONE_IN == 0
