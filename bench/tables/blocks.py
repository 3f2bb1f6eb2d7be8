"""The blocks of a document that a table fills.

A block begins with `<!-- table: NAME -->` and ends with `<!-- end -->`, each alone on its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bench.results import ROOT

BLOCK = re.compile(r"^<!-- table: (?P<name>[\w-]+) -->\n(?P<old>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
BEGIN = re.compile(r"^<!-- table: ", re.MULTILINE)
DOCUMENTS = ("README.md", "README.ko.md", "models/README.md", "docs/*.md")
KOREAN_SUFFIX = ".ko.md"


def documents(root: Path = ROOT) -> list[Path]:
    """All files that may have blocks."""
    return [path for pattern in DOCUMENTS for path in sorted(root.glob(pattern))]


def filled(path: Path, table: Callable[[str, str], str]) -> str:
    """The text of a document with each block filled by `table(name, language)`.

    ValueError names the document where a block is unknown or has no end.
    """
    text = path.read_text(encoding="utf-8")
    language = "ko" if path.name.endswith(KOREAN_SUFFIX) else "en"
    if len(BEGIN.findall(text)) != len(BLOCK.findall(text)):
        raise ValueError(f"{path}: a table's block has no line `<!-- end -->`")

    def fill(block: re.Match) -> str:
        try:
            inside = table(block["name"], language)
        except KeyError:
            raise ValueError(f"{path}: bench.tables.registry has no table {block['name']!r}") from None
        return f"<!-- table: {block['name']} -->\n{inside}\n<!-- end -->"

    return BLOCK.sub(fill, text)
