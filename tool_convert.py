"""Weights from one form into another, without the model in memory: files larger than the memory go through.

    python tool_convert.py to-safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors
    python tool_convert.py to-dtype control_v11p_sd15_canny.pth canny_fp16.safetensors --dtype fp16
    python tool_convert.py to-diffusers v1-5-pruned.ckpt sd15
    python tool_convert.py to-original sd-controlnet-canny canny.safetensors
    python tool_convert.py extract-control control_sd15_canny.pth canny.safetensors
    python tool_convert.py transfer-control canny.pth new.pth --from-base sd15 --to-base anime.ckpt
    python tool_convert.py strip v1-5-pruned.ckpt --dry-run

A result's suffix says its form: .safetensors, or .ckpt, .pth, .pt, .bin of torch. It appears only when it is
complete. Exit codes: 0; 2 with one sentence about what is wrong; 130 after Ctrl-C.
"""

import argparse
from pathlib import Path

from common.shell import Parser, run_command

DTYPES = ("fp32", "fp16", "bf16")  # of `ldm.util`, which brings torch: --help answers at once
OF_ALL_COMMANDS = ("command", "input", "output", "force", "dtype", "dry_run")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("tool_convert.py", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, output: str = "file to write") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.add_argument("input", type=Path, help="file, or folder of diffusers")
        one.add_argument("output", type=Path, nargs="?" if name == "strip" else None, help=output)
        one.add_argument("--force", action="store_true", help="replace an older output")
        return one

    command("to-safetensors", "a file of torch as .safetensors, every tensor as it is")
    to_dtype = command("to-dtype", "a file in another precision; schedule and integers stay exact")
    original = command("to-original", "a folder of diffusers as one file under the original names")
    diffusers = command("to-diffusers", "a file as a folder that diffusers reads", "folder to write")
    command("extract-control", "the control branch out of a full model")
    transfer = command("transfer-control", "a control branch moved to another base: w + (new - old)")
    strip = command("strip", "a file without moving averages, trainer's state and training losses")
    for one in (to_dtype, original, diffusers):
        one.add_argument("--dtype", choices=DTYPES, required=one is to_dtype, help="of the weights")
    transfer.add_argument("--from-base", type=Path, required=True, help="the base it was trained on")
    transfer.add_argument("--to-base", type=Path, required=True, help="the base it is to work on")
    diffusers.add_argument("--config", type=Path, metavar="YAML", help="of the model; default: what fits")
    for one in (strip, diffusers):
        one.add_argument("--use-ema", action="store_true", help="moving averages become the weights")
    strip.add_argument("--dry-run", action="store_true", help="only list what would go, and its size")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    args = parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> object:
    """What there is to say of the result."""
    from tools.convert.conversions import CONVERSIONS, strip_plan  # brings torch
    from tools.convert.files import Target

    own = {name: value for name, value in vars(args).items() if name not in OF_ALL_COMMANDS}
    if args.command == "strip" and args.dry_run:
        return strip_plan(args.input, **own)  # nothing is written, so that no output is asked for
    if args.output is None:
        raise ValueError("name the file to write, or add --dry-run to see what would go")
    target = Target(args.output, force=args.force, dtype=getattr(args, "dtype", None))
    return CONVERSIONS[args.command](args.input, target, **own)


if __name__ == "__main__":
    raise SystemExit(main())
