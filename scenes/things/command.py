"""Makes the art that the things model is trained on: icons with free licences, rendered once.

    python -m scenes.things --out training/things

fetches twelve packages by npm (see `scenes.things.fetch`; checked against their sums), renders the icons of
every word by resvg-py, and writes art.npz and more_art.npz. What is there is kept.
"""

from __future__ import annotations

from pathlib import Path

from common.shell import Parser, run_command
from scenes.things.art import ART_FILE, FOLDER, MORE_FILE, build_art, build_more_art, load_art, save_art
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
    counts = []
    for name, build in ((ART_FILE, build_art), (MORE_FILE, build_more_art)):
        if new or not (folder / name).exists():
            save_art(build(folder), folder / name)
        counts.append(f"{len(load_art(folder, name))} in {folder / name}")
    return f"drawings of {len(words())} words: {' and '.join(counts)}"
