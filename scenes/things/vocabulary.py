"""Reads prompts for a model that knows these words only, in English or Korean.

Korean becomes the English that the model was trained on; a prompt without any known thing is refused with the
nearest words that are known, because the picture would be of anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches

from scenes.things.palette import KOREAN, PALETTE
from scenes.things.words import words

MOST_THINGS = 2  # that training shows in one picture
LONGEST = 4  # words in a name: "slice of pizza"
NEAREST, CUTOFF = 3, 0.5  # how many suggestions, and how alike (0 to 1) they are at least
EXAMPLES = "cat, house, tree"
HANGUL = re.compile("[가-힣]")
PARTICLE = re.compile("(에서|하고|이랑|위에|색|의|와|과|랑|에|은|는|이|가|을|를)$")
BACKGROUND = "배경"
FILLER = set(re.findall(r"\w+", "a an the and with on in of next to by beside background"))
KOREAN_FILLER = set(re.findall(r"\w+", "그림 한 마리 개의 그려줘 위에 위의 있는 그리고"))


def read_prompt(prompt: str) -> str:
    """The prompt as the model was trained to read it; an empty one stays empty.

    ValueError names what is not known and the nearest known words, or says that there are too many things.
    """
    if HANGUL.search(prompt):
        return _from_korean(prompt)
    known = {name for one in words().values() for name in (one.name, *one.synonyms)}
    plural = {f"{name}s" for name in known}
    said = _longest_first(re.findall(r"[a-z]+(?:['-][a-z]+)*", prompt.lower()), known | plural | set(PALETTE))
    things = [name for name in said if name in known or name in plural]
    if said and not things:
        _refuse([name for name in said if name not in FILLER and name not in PALETTE] or said, known)
    _check_count(things)
    return prompt.lower()


def _from_korean(prompt: str) -> str:
    """A colour stands before what it belongs to: a thing, or the background."""
    names = {one.korean: one.name for one in words().values()}
    things: list[str] = []
    background = colour = None
    for said in _longest_first(re.findall(r"\w+", prompt), {*KOREAN, BACKGROUND, *names}):
        if said in KOREAN:
            colour = KOREAN[said]
        elif said == BACKGROUND:
            background, colour = colour, None
        elif said in names:
            things.append(f"{colour} {names[said]}" if colour else names[said])
            colour = None
        elif said not in KOREAN_FILLER:
            _refuse([said], set(names))
    _check_count(things)
    sentence = " and ".join(f"a {thing}" for thing in things)
    return f"{sentence} on a {background} background" if background else sentence


def _longest_first(tokens: list[str], known: Collection[str]) -> list[str]:
    """The tokens, joined where several are one known name, without the particle behind a known Korean one."""
    said, at = [], 0
    while at < len(tokens):
        for length in range(LONGEST, 0, -1):
            name = " ".join(tokens[at : at + length])
            stem = next((one for one in (name, PARTICLE.sub("", name)) if one in known), None)
            if stem or length == 1:
                said.append(stem or name)
                at += length
                break
    return said


def _check_count(things: list[str]) -> None:
    if len(things) > MOST_THINGS:
        raise ValueError(f"{', '.join(things)}: this model draws at most {MOST_THINGS} things in one picture")


def _refuse(unknown: list[str], known: Collection[str]) -> None:
    close = [name for word in unknown for name in get_close_matches(word, known, NEAREST, CUTOFF)][:NEAREST]
    hint = f"the nearest it knows are {', '.join(close)}" if close else f"it knows {EXAMPLES}"
    raise ValueError(
        f"this model does not know {', '.join(map(repr, unknown))}: {hint}; "
        f"scenes/things/words.csv lists all {len(words())} words"
    )


READERS: dict[str | None, Callable[[str], str]] = {None: str, "things": read_prompt}  # by `vocabulary:`
