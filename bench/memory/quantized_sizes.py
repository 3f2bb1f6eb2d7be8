"""Bytes of quantized files at the exact shapes of a model: shapes and plan say them before there is a weight.

    python -m bench.memory.quantized_sizes
    python -m bench.memory.quantized_sizes --config models/tiny.yaml --schemes int8_dynamic fp8_weight

Static layers have a range over all timesteps and one for each of four groups, as `python -m quantize` makes
them. "Branch" is the control branch alone. Exit codes: 0; 2 with one sentence about what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[2]
RANGES = ((0.0, 1.0),) * 5  # their number counts
SWITCHES = ((), ("decoder",), ("compact",), ("compact", "decoder"))
BRANCH = "control_model."
MIB, MB = 2**20, 1e6


def sizes(model: nn.Module, scheme: str, switches: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of the whole file, and of the tensors of the control branch in it."""
    from quantize.calibration.ranges import static_layers
    from quantize.files.layout import layout_of, nbytes, specs_of
    from quantize.files.write import Content, file_size
    from quantize.selection import default_selection, make_plan

    plan = make_plan(model, default_selection(scheme, **dict.fromkeys(switches, True)))
    ranges = dict.fromkeys(static_layers(plan), RANGES)
    layout = layout_of(model, specs_of(model, plan, ranges), narrow=plan.narrow)
    branch = sum(nbytes(*entry) for name, entry in layout.items() if name.startswith(BRANCH))
    return file_size(model, Content(plan), ranges), branch


def table(model: nn.Module, schemes: list[str]) -> str:
    """Markdown: a row for each set of switches."""
    head = ["plan", *(cell for scheme in schemes for cell in (f"{scheme}, MiB", "branch, MB"))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for switches in SWITCHES:
        cells = [" ".join(f"--{one}" for one in switches) or "default"]
        for scheme in schemes:
            whole, branch = sizes(model, scheme, switches)
            cells += [f"{whole / MIB:.1f}", f"{branch / MB:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as above."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory.quantized_sizes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    add("--schemes", nargs="+", default=["int8_static", "int4_group"], metavar="NAME")
    args = parser.parse_args(argv)
    from ldm.config import create_meta_model

    try:
        print(table(create_meta_model(args.config), args.schemes))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
