"""Reads prompts for a model that knows these words only, in English or Korean.

Korean becomes the English that the model was trained on; a prompt without any known thing is refused with the
nearest words that are known, because the picture would be of anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache

from scenes.things.palette import KOREAN, PALETTE
from scenes.things.words import words

MOST_THINGS = 2  # that training shows in one picture
LONGEST = 4  # words in a name: "slice of pizza"
NEAREST, CUTOFF = 3, 0.5  # how many suggestions, and how alike (0 to 1) they are at least
EXAMPLES = "cat, house, tree"
HANGUL = re.compile(r"[가-힣]")
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
PARTICLES = (
    "에서",
    "하고",
    "이랑",
    "위에",
    "색",
    "의",
    "와",
    "과",
    "랑",
    "에",
    "은",
    "는",
    "이",
    "가",
    "을",
    "를",
)
BACKGROUND, PLAIN = "배경", ("그림", "한", "마리", "개의", "그려줘", "위에", "위의", "있는", "그리고")
# What may stand around things without being one.
FILLER = {"a", "an", "the", "and", "with", "on", "in", "of", "next", "to", "by", "beside", "background"}


@cache
def names() -> dict[str, str]:
    """Every English name of a thing -> the word of the table."""
    found = {other: one.name for one in words().values() for other in one.synonyms}
    return found | {name: name for name in words()}


@cache
def korean_names() -> dict[str, str]:
    """Every Korean name -> the word of the table."""
    return {one.korean: one.name for one in words().values()}


def read_prompt(prompt: str) -> str:
    """The prompt as the model was trained to read it; an empty one stays empty.

    ValueError names what is not known and the nearest known words, or says that there are too many things.
    """
    if HANGUL.search(prompt):
        return _from_korean(prompt)
    tokens = [token.lower() for token in WORD.findall(prompt)]
    things, rest = _match(tokens, names())
    if tokens and not things:
        unknown = [token for token in rest if token not in FILLER and token not in " ".join(PALETTE).split()]
        _refuse(unknown or tokens, names())
    if len(things) > MOST_THINGS:
        raise ValueError(f"{', '.join(things)}: this model draws at most {MOST_THINGS} things in one picture")
    return prompt.lower()


def _match(tokens: list[str], known: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The known names in a row of words, longest first, and the words that belong to none."""
    things, rest, at = [], [], 0
    while at < len(tokens):
        for length in range(LONGEST, 0, -1):
            name = " ".join(tokens[at : at + length])
            if name in known or name.removesuffix("s") in known:
                things.append(name)
                at += length
                break
        else:
            rest.append(tokens[at])
            at += 1
    return things, rest


def _refuse(unknown: list[str], known: Mapping[str, str]) -> None:
    near = dict.fromkeys(name for word in unknown for name in get_close_matches(word, known, NEAREST, CUTOFF))
    hint = f"the nearest it knows are {', '.join(list(near)[:NEAREST])}" if near else f"it knows {EXAMPLES}"
    raise ValueError(
        f"this model does not know {', '.join(map(repr, unknown))}: {hint}; "
        f"scenes/things/words.csv lists all {len(words())} words"
    )


def _from_korean(prompt: str) -> str:
    """Colours stand before what they belong to: a thing, or the background."""
    colours = {korean: name for name, korean in KOREAN.items()}
    things: list[str] = []
    background = colour = None
    for said in _korean_words(prompt):
        if said in colours:
            colour = colours[said]
        elif said == BACKGROUND:
            background, colour = colour, None
        elif said in korean_names():
            things.append(f"{colour} {korean_names()[said]}" if colour else korean_names()[said])
            colour = None
        else:
            _refuse([said], korean_names())
    if len(things) > MOST_THINGS:
        raise ValueError(f"{prompt}: this model draws at most {MOST_THINGS} things in one picture")
    said = " and ".join(f"a {thing}" for thing in things)
    return f"{said} on a {background} background" if background else said


def _korean_words(prompt: str) -> list[str]:
    """Colours, names and "background" without their particles; two words where a name has two."""
    known = {*KOREAN.values(), BACKGROUND, *korean_names()}
    tokens = re.findall(r"\w+", prompt)
    said, at = [], 0
    while at < len(tokens):
        pair = _stem(" ".join(tokens[at : at + 2]), known)
        if at + 1 < len(tokens) and pair in known:
            said.append(pair)
            at += 2
            continue
        one = _stem(tokens[at], known)
        at += 1
        if one not in PLAIN:
            said.append(one)
    return said


def _stem(token: str, known: set[str]) -> str:
    if token in known:
        return token
    stems = (token.removesuffix(particle) for particle in PARTICLES)
    return next((stem for stem in stems if stem in known), token)


READERS: dict[str | None, Callable[[str], str]] = {None: str, "things": read_prompt}  # by `vocabulary:`
