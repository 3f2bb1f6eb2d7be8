"""Smaller models by pruning: what training left behind, whole heads and channels, two weights of four.

    python -m quantize.prune strip v1-5-pruned.ckpt --out v1-5.safetensors --half
    python -m quantize.prune structured models/tiny.yaml --mlp 0.25 --res 0.25 --out small.safetensors
    python -m quantize.prune finetune models/tiny.yaml --weights small.safetensors --steps 300 \\
        --out new.safetensors
    python -m quantize.prune 2:4 models/tiny.yaml --out sparse.safetensors
    python generate.py --weights new.safetensors --image test_imgs/circle.png --prompt "cyan circle"

A pruned file loads wherever weights do, quantization included. Only `strip` and `structured` make files
smaller and models faster everywhere: zeros take as much room as other numbers, and as long to multiply. Exit
codes: 0; 2 with one sentence about what is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

from common.flags import add_flags, read_flags
from common.shell import Parser, run_command
from tools.compress.settings import Finetune, Strip, Structured, TwoOfFour

COMMANDS = {"strip": Strip, "2:4": TwoOfFour, "structured": Structured, "finetune": Finetune}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m quantize.prune", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, settings in COMMANDS.items():
        about = settings.__doc__.partition(";")[0].rstrip(".")  # the first half says what, the rest how
        add_flags(commands.add_parser(name, help=about, description=about), settings)
    args = parser.parse_args(argv)

    def act() -> str:
        job = read_flags(COMMANDS[args.command], args)
        from tools.compress import pruning  # torch and the models, which --help does without

        return pruning.PRUNERS[args.command](job)

    return run_command(act)


if __name__ == "__main__":
    raise SystemExit(main())
