"""Images to numbers: pictures by any models, metrics of any folders, models and hands compared.

python -m eval score pictures truth --metrics psnr ssim fid
"""

from __future__ import annotations

import sys
from importlib import import_module

from common.shell import DONE, USER_ERROR, say

COMMANDS = {
    "generate": "eval.generate",
    "score": "eval.score",
    "compare": "eval.compare",
    "people": "eval.people",
}  # subcommand -> the module whose `main` it is


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(f"{__doc__.strip()}\n\nsubcommands, each with a --help: {', '.join(COMMANDS)}")
        return DONE
    if not words or words[0] not in COMMANDS:
        got = f"no subcommand {words[0]!r}" if words else "a subcommand is missing"
        return say(f"{got}: choose from {', '.join(COMMANDS)}", USER_ERROR)
    return import_module(COMMANDS[words[0]]).main(words[1:])
