"""A base model and a new control branch in one file, to begin training from.

    python tool_add_control.py v1-5-pruned.ckpt control_sd15_ini.ckpt
    python tool_add_control.py v1-5-pruned.ckpt control_sd15_lite.safetensors --branch lite
    python tool_add_control.py --config models/tiny.yaml tiny_ini.safetensors

The base is any file or folder that loads; the result's suffix says its form: .safetensors, or .ckpt, .pth,
.pt, .bin of torch. It appears only when it is complete. Exit codes: 0; 2 with one sentence about what is
wrong; 130 after Ctrl-C.
"""

import argparse
from pathlib import Path
from typing import get_args

from common.shell import Parser, run_command
from trainer.flags import BranchKind

MODELS = Path(__file__).parent / "models"
SEEDS = 2**63  # torch takes them below


def parse_args(argv: list[str] | None, prog: str, config: str) -> argparse.Namespace:
    """Read the command line; SystemExit with one sentence when it is wrong."""
    parser = Parser(prog, __doc__)
    add = parser.add_argument
    add("base", type=Path, nargs="?", help="file or folder (default: what the yaml names)")
    add("output", type=Path, help="file to write")
    add("--config", type=Path, metavar="YAML", help=f"of the model (default: models/{config})")
    add("--branch", choices=get_args(BranchKind), help="kind of branch (default: the yaml's)")
    add("--use-ema", action="store_true", help="the base's moving averages become its weights")
    add("--seed", type=int, metavar="N", default=0, help="of what is drawn (default: %(default)s)")
    add("--replace-branch", action="store_true", help="begin anew where the base has a branch already")
    add("--force", action="store_true", help="replace an older output")
    args = parser.parse_intermixed_args(argv)  # flags may stand between the paths, one of which may be absent
    if not 0 <= args.seed < SEEDS:
        parser.error(f"--seed {args.seed}: give 0 or more, less than 2**63")
    return args


def main(
    argv: list[str] | None = None, prog: str = "tool_add_control.py", config: str = "cldm_v15.yaml"
) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr.

    config: the yaml in models/ to take where the command line names none.
    """
    args = parse_args(argv, prog, config)

    def run() -> object:
        from tools.convert.add_control import BranchInit, add_control  # heavy: --help answers without
        from tools.convert.files import Target

        init = BranchInit(args.branch, args.seed, use_ema=args.use_ema, replace=args.replace_branch)
        target = Target(args.output, force=args.force)
        return add_control(args.base, target, args.config or MODELS / config, init)

    return run_command(run)


if __name__ == "__main__":
    raise SystemExit(main())
