"""Images to numbers: pictures by any models, metrics of any folders, models and hands compared.

python -m eval score pictures truth --metrics psnr ssim fid
"""

from __future__ import annotations

import sys
from importlib import import_module

from common.shell import Parser

COMMANDS = {
    "generate": "eval.generate",
    "score": "eval.score",
    "compare": "eval.compare",
    "people": "eval.people",
}  # subcommand -> the module whose `main` it is


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = Parser("python -m eval", __doc__)
    parser.add_argument("subcommand", choices=list(COMMANDS), help="each has a --help")
    subcommand = parser.parse_args(words[:1]).subcommand  # what follows is the subcommand's own
    return import_module(COMMANDS[subcommand]).main(words[1:])
