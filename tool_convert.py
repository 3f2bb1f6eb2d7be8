"""Weights from one form into another, without the model in memory: files larger than the memory go through.

    python tool_convert.py to-safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors
    python tool_convert.py to-dtype control_v11p_sd15_canny.pth canny_fp16.safetensors --dtype fp16
    python tool_convert.py to-diffusers v1-5-pruned.ckpt sd15
    python tool_convert.py to-original sd-controlnet-canny canny.safetensors
    python tool_convert.py extract-control control_sd15_canny.pth canny.safetensors
    python tool_convert.py transfer-control canny.pth new.pth --from-base sd15 --to-base anime.ckpt
    python tool_convert.py strip v1-5-pruned.ckpt --dry-run

A result's suffix says its form: .safetensors, or .ckpt, .pth, .pt, .bin of torch. It appears only when it is
complete. Exit codes: 0; 1 with one sentence about what is wrong; 130 after Ctrl-C.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from cldm.convert_target import Target

USER_ERROR, INTERRUPTED = 1, 130  # 128 + SIGINT, as shells count
DTYPES = ("fp32", "fp16", "bf16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{message}; python {self.prog} --help lists everything\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        prog="tool_convert.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, output: str = "file to write") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
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
    with _remembered_interrupt() as interrupted:
        try:
            sys.stdout.write(f"{_run(args)}\n")
        except KeyboardInterrupt:
            return _say("stopped; nothing was written", INTERRUPTED)
        except (ValueError, OSError) as error:
            if interrupted:
                return _say("stopped; nothing was written", INTERRUPTED)
            return _say(_sentence(error), USER_ERROR)
    return 0


@contextmanager
def _remembered_interrupt() -> Iterator[list[int]]:
    """Holds the signal after Ctrl-C: inside torch's C code that can surface as any other error."""
    received: list[int] = []

    def receive(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:  # else somebody else, such as nohup, has decided about it
        signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _run(args: argparse.Namespace) -> object:
    """What there is to say of the result."""
    from cldm import convert

    if args.command == "strip" and args.dry_run:
        return convert.strip_plan(args.input, use_ema=args.use_ema)
    if args.output is None:
        raise ValueError("name the file to write, or add --dry-run to see what would go")
    with _target(args) as target:
        return {
            "to-safetensors": lambda: convert.to_safetensors(args.input, target),
            "to-dtype": lambda: convert.to_dtype(args.input, target),
            "to-original": lambda: convert.to_original(args.input, target),
            "to-diffusers": lambda: convert.to_diffusers(
                args.input, target, args.config, use_ema=args.use_ema
            ),
            "extract-control": lambda: convert.extract_control(args.input, target),
            "transfer-control": lambda: convert.transfer_control(
                args.input, args.from_base, args.to_base, target
            ),
            "strip": lambda: convert.strip(args.input, target, use_ema=args.use_ema),
        }[args.command]()


@contextmanager
def _target(args: argparse.Namespace) -> "Iterator[Target]":
    """Where the result goes, with a progress bar on a terminal."""
    from tqdm import tqdm

    from cldm.convert_target import Target
    from ldm.util import DTYPES as BY_NAME

    bar = tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=1)

    def start(total: int) -> Callable[[int], object]:
        bar.reset(total)
        return bar.update

    dtype = BY_NAME.get(getattr(args, "dtype", None))
    with bar:
        yield Target(args.output, force=args.force, dtype=dtype, bar=start)


def _sentence(error: Exception) -> str:
    """One line, whatever raised it; the system's own errors lose their number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(sentence + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
