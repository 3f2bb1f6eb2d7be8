"""Makes the art that the things model is trained on: icons with free licences, rendered once.

    python -m scenes.things --out training/things

fetches three packages by npm (Noto Emoji, Fluent Emoji Flat, Twemoji; checked against their sums), renders
the icons of every word by resvg-py, and writes art.npz. What is there is kept.
"""

from __future__ import annotations

from pathlib import Path

from common.shell import Parser, run_command
from scenes.things.art import ART_FILE, FOLDER, build_art, load_art, save_art
from scenes.things.fetch import fetch
from scenes.things.words import words


def main(argv: list[str] | None = None) -> int:
    """Fetch and render; says how much art there is."""
    parser = Parser("-m scenes.things", __doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    parser.add_argument(
        "--newest", action="store_true", help="the latest packages, whose sums nobody has checked"
    )
    args = parser.parse_args(argv)
    return run_command(lambda: make_art(args.out, newest=args.newest))


def make_art(folder: Path, *, newest: bool = False) -> str:
    """Whatever is missing of the art in `folder`; a sentence that says how much there is."""
    new = fetch(folder, newest)
    if new or not (folder / ART_FILE).exists():
        save_art(build_art(folder), folder)
    sprites = load_art(folder)
    return f"{len(sprites)} drawings of {len(words())} words in {folder / ART_FILE}"
