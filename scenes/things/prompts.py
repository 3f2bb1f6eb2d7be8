"""What is said of a scene: several wordings in English, and the Korean words for them."""

from __future__ import annotations

import numpy as np

from scenes.things.words import Word

SYNONYM = 0.25  # share of things called by another word
ARTICLE = 0.7  # share of things with an article
WITH_BACKGROUND = (
    "{} on a {} background",
    "{} on a {} background",
    "{} with a {} background",
    "{} with {} background",
    "{} on {}",
    "{}, {} background",
    "{1} background, {0}",
    "on a {1} background, {0}",
)
WITHOUT = ("{}", "{}", "{}", "a drawing of {}", "a picture of {}", "draw {}", "{}, flat colors")
TWO = ("{} and {}", "{} and {}", "{} next to {}", "{} with {}")
VOWELS = "aeiou"


def phrase(rng: np.random.Generator, word: Word, colour: str | None) -> str:
    """A thing as somebody would call it: "a blue kitten", "cat"."""
    name = word.name
    if word.synonyms and rng.random() < SYNONYM:
        name = word.synonyms[rng.integers(len(word.synonyms))]
    said = f"{colour} {name}" if colour else name
    if rng.random() >= ARTICLE or said.endswith("s"):
        return said
    return f"{'an' if said[0] in VOWELS else 'a'} {said}"


def sentence(rng: np.random.Generator, phrases: list[str], background: str | None) -> str:
    """The prompt of one or two things on a background; None says nothing about it."""
    things = phrases[0] if len(phrases) == 1 else _pick(rng, TWO).format(*phrases)
    if background is None:
        return _pick(rng, WITHOUT).format(things)
    return _pick(rng, WITH_BACKGROUND).format(things, background)


def _pick(rng: np.random.Generator, templates: tuple[str, ...]) -> str:
    return templates[rng.integers(len(templates))]
