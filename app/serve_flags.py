"""The flags of gradio_app.py as data. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.generate_flags import ModelFlags, each
from common.flags import add_flags, flag, read_flags
from common.shell import Parser


@dataclass(frozen=True)
class PageFlags:
    """What the page offers, and to whom."""

    branch: tuple[Path, ...] | None = each("one more control branch; repeat", metavar="FILE")
    model: tuple[str, ...] | None = each(
        "one more model to compare with: its yaml, then its weights; repeat", metavar="NAME=YAML[,FILE...]"
    )
    listen: bool = flag(False, "answer other machines too, not only this one")
    port: int = flag(7860, "of http")
    share: bool = flag(False, "a public address for three days, through Gradio's servers")
    auth: str | None = flag(None, "who may use it", metavar="USER:PASSWORD")
    lang: Literal["en", "ko"] | None = flag(None, "language of the page (default: the browser's)")
    max_queue: int = flag(20, "requests that may wait")


@dataclass(frozen=True)
class ServeFlags:
    """All flags of a command line."""

    model: ModelFlags = ModelFlags()
    page: PageFlags = PageFlags()


def parse_flags(argv: list[str] | None, description: str) -> ServeFlags:
    """Read the command line; SystemExit with one sentence when it is wrong."""
    parser = Parser("python gradio_app.py", description)
    add_flags(parser, PageFlags, PageFlags.__doc__.rstrip("."))
    add_flags(parser, ModelFlags, ModelFlags.__doc__.rstrip("."))
    args = parser.parse_args(argv)
    return ServeFlags(
        **{name: read_flags(group, args) for name, group in (("model", ModelFlags), ("page", PageFlags))}
    )
