"""Names out of files, fit to be printed: a file may call its tensors anything."""

from __future__ import annotations

LONGEST = 120  # characters shown of one name; those of Stable Diffusion have less than 100


def plain(text: object, longest: int = LONGEST) -> str:
    """`text` on one line, without characters that steer a terminal, and not endless."""
    words = str(text)
    shown = "".join(letter if letter.isprintable() else "?" for letter in words[:longest])
    return shown + ("..." if len(words) > longest else "")
