"""The flags of generate.py. Nothing heavy is imported here, so that --help answers at once.

A flag that was not given is None: `app.generate_request` says what that means.
"""

import argparse
from pathlib import Path

from common.shell import Parser


def parse_args(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Read the command line; SystemExit with one sentence when it is wrong."""
    parser = Parser("generate.py", description)
    parser.set_defaults(branches=None)
    for add_flags in (_add_what, _add_how, _add_savings, _add_control, _add_editing, _add_model, _add_output):
        add_flags(parser)
    return parser.parse_args(argv)


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to make").add_argument
    add(
        "--image", action="append", metavar="FILE", help="drawing, photograph or map; repeat for each control"
    )
    add(
        "--batch-dir",
        type=Path,
        metavar="DIR",
        help="all pictures of a folder; circle.txt is circle.png's prompt",
    )
    add("--prompt", metavar="TEXT", help="what to draw; (word:1.2) weighs a word")
    add("--negative-prompt", metavar="TEXT", help="what to keep away from")
    add("--seed", type=int, metavar="N", help="of the noise, 0 or more (default: 0)")
    add("--num-samples", type=int, metavar="N", help="pictures of each, seeds count up (default: 1)")
    add(
        "--from",
        type=Path,
        dest="from_picture",
        metavar="PNG",
        help="make this picture again; flags change it",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how to sample").add_argument
    add("--steps", type=int, metavar="N", help="of the sampler (default: 20)")
    add("--sampler", metavar="NAME", help="--list names them (default: ddim)")
    add("--eta", type=float, metavar="X", help="noise of ddim, 0 to 1 (default: 0)")
    add("--scale", type=float, metavar="X", help="of the guidance, 1 is none (default: the model's)")
    add("--resolution", type=int, metavar="PX", help="of the short side (default: the model's)")
    add("--clip-skip", type=int, metavar="N", help="text from the N-th layer from the end")


def _add_savings(parser: argparse.ArgumentParser) -> None:
    about = "these change the picture a little: docs/speed.md measures how much, and what they save"
    add = parser.add_argument_group("save time", about).add_argument
    add("--guidance-start", type=float, metavar="X", help="first guided part of the steps (default: 0)")
    add("--guidance-end", type=float, metavar="X", help="last guided part of the steps (default: 1)")
    add("--reuse-every", type=int, metavar="K", help="one whole step in K, others reuse it (default: 1, off)")
    add("--reuse-cut", metavar="NAME", help="what steps between compute; --list names it (default: outer-2)")
    add("--control-every", type=int, metavar="K", help="one step in K computes the control (default: 1)")


def _add_control(parser: argparse.ArgumentParser) -> None:
    about = "a flag given once is for all controls, else give it once for each"
    add = parser.add_argument_group("control", about).add_argument
    add(
        "--control",
        action="append",
        metavar="NAME",
        help="--list names them (default: what the weights are called, else scribble)",
    )
    add("--strength", action="append", type=float, metavar="X", help="0 is off, 1 as trained (default: 1)")
    add(
        "--start",
        action="append",
        type=float,
        metavar="X",
        help="first part of the steps, 0 to 1 (default: 0)",
    )
    add("--end", action="append", type=float, metavar="X", help="last part of the steps, 0 to 1 (default: 1)")
    add(
        "--branch",
        action="append",
        metavar="FILE",
        help="weights of its own, or `own` for the model's branch",
    )
    add(
        "--guided-control",
        action=argparse.BooleanOptionalAction,
        help="let --scale strengthen the control as it does the prompt (default: the model's)",
    )
    add("--guess-mode", action="store_true", default=None, help="let the control speak; no prompt needed")
    add(
        "--no-preprocess",
        action="store_false",
        dest="preprocess",
        default=None,
        help="--image is a ready-made map",
    )
    add("--low", type=float, metavar="X", help="canny: an edge goes on above it (default: 100)")
    add("--high", type=float, metavar="X", help="canny: an edge starts above it (default: 200)")
    add(
        "--invert", choices=("auto", "yes", "no"), help="scribble: dark lines on light paper? (default: auto)"
    )
    add("--threshold", type=int, metavar="N", help="scribble_xdog: 1 to 255, lower draws more (default: 32)")


def _add_editing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("start from a picture").add_argument
    add("--init", metavar="FILE", help="picture to start from")
    add("--denoise", type=float, metavar="X", help="how much of it is made anew, up to 1 (default: 1)")
    add("--mask", metavar="FILE", help="white where it is painted anew, the rest stays")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--config", metavar="YAML", help="default: models/tiny.yaml")
    add("--weights", nargs="+", metavar="FILE", help="a base and a control file, or one with both")
    add("--quantized", metavar="FILE", help="of python -m quantize, in place of --weights")
    add(
        "--lora",
        action="append",
        dest="loras",
        metavar="FILE[:WEIGHT]",
        help="merge it into the model; repeat for more (weight: 1)",
    )
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", choices=("auto", "fp32", "fp16", "bf16"), help="default: auto, fp16 on a card")
    add("--save-memory", action="store_true", default=None, help="slower, fits into less")
    add(
        "--cuda-graphs", action="store_true", default=None, help="on a card: record a step once and replay it"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, default=Path("outputs"), help="a folder, or a .png file (default: %(default)s)")
    add("--save-maps", action="store_true", help="write the control maps too")
    add("--json", action="store_true", help="the result on stdout for programs; no progress bars")
    add("--list", action="store_true", help="name the controls and samplers, then stop")
