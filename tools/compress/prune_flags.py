"""The flags of `python -m quantize.prune`. Nothing heavy is imported here: --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{message}; {self.prog} --help lists everything\n")


def parse_args(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Read the command line; SystemExit with one sentence where it is wrong."""
    parser = _Parser(
        prog="python -m quantize.prune",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, allow_abbrev=False)

    _add_strip(command("strip", "a file without what only training needs: averages, optimizer, losses"))
    _add_magnitude(command("magnitude", "the smallest weights become zeros"))
    _add_files(command("2:4", "two of every four weights become zeros, for CUDA GPUs from 8.0 on"))
    _add_structured(command("structured", "heads and channels leave: a smaller, faster model"))
    _add_finetune(command("finetune", "train a pruned model on, on drawn scenes as the tiny model's"))
    return parser.parse_args(argv)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, metavar="YAML", help="the model, such as models/tiny.yaml")
    add("--weights", nargs="+", type=Path, metavar="FILE", help="default: those of the yaml")
    add("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file; an older one goes")


def _add_strip(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", type=Path, help="a file of weights, or a training checkpoint")
    add("--out", type=Path, required=True, metavar="FILE", help="file to write")
    add("--half", action="store_true", help="weights in half precision; schedule and integers stay exact")
    add("--use-ema", action="store_true", help="moving averages become the weights")
    add("--force", action="store_true", help="replace an older file")


def _add_magnitude(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    _add_scope(parser)
    parser.add_argument("--share", type=float, required=True, metavar="X", help="of weights, 0 to below 1")


def _add_structured(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    _add_scope(parser)
    add = parser.add_argument
    for kind, what in (
        ("heads", "attention heads"),
        ("mlp", "channels inside of feed-forward layers"),
        ("res", "groups of channels between a residual block's convolutions"),
    ):
        add(f"--{kind}", type=float, default=0.0, metavar="X", help=f"share of {what}, 0 to below 1")
    add(
        "--by",
        choices=("magnitude", "taylor"),
        default="magnitude",
        help="what tells how much a unit matters",
    )
    add("--calibrate", type=Path, metavar="DIR", help="pictures whose runs --by taylor looks at")
    add("--steps", type=int, default=8, metavar="N", help="of each such run (default: %(default)s)")
    add("--groups", type=int, default=4, metavar="N", help="of timesteps, a call each (default: %(default)s)")


def _add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scope",
        choices=("layer", "global"),
        default="layer",
        help="whether the share is of every layer, or of all of them by one order (default: %(default)s)",
    )


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    add = parser.add_argument
    add("--steps", type=int, required=True, metavar="N", help="optimizer steps of batch 16, in all")
    add("--run", type=Path, metavar="DIR", help="checkpoints, from which the same command goes on")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="the highest (default: %(default)s)")
    add("--cache", type=int, default=2000, metavar="N", help="scenes encoded once (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of scenes and noise (default: %(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes that draw (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default: %(default)s)")
