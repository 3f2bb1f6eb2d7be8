"""The flags of `python -m quantize`. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Read the command line; SystemExit where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m quantize",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for add_flags in (_add_files, _add_schemes, _add_calibration, _add_switches, _add_sensitivity):
        add_flags(parser)
    return parser.parse_args(argv)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("config", type=Path, metavar="YAML", help="the model, such as models/tiny.yaml")
    add("--weights", nargs="+", type=Path, metavar="FILE", help="float weights (default: those of the yaml)")
    add("--out", type=Path, metavar="FILE", help="a .safetensors file, replaced if it is there")


def _add_schemes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which layers become what").add_argument
    add("--scheme", default="int8_static", metavar="NAME", help="of most layers (default: %(default)s)")
    add(
        "--rule",
        action="append",
        metavar="PATTERN=SCHEME",
        help="for layers of these names; `float` for none",
    )
    add("--decoder", action="store_true", help="the autoencoder's decoder too")
    add("--compact", action="store_true", help="int8 weights for what would stay float, the rest by half")
    add("--plan", type=Path, metavar="JSON", help="schemes layer by layer, in place of the rules")
    add("--plan-out", type=Path, metavar="JSON", help="write the plan that was used")


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    about = "runs of the float model on pictures, which measure ranges and errors"
    add = parser.add_argument_group("calibration", about).add_argument
    add("--calibrate", type=Path, metavar="DIR", help="pictures to run the float model on")
    add("--steps", type=int, default=20, metavar="N", help="of each such run (default: %(default)s)")
    add("--groups", type=int, default=4, metavar="N", help="of timesteps, ranges each (default: %(default)s)")
    add("--ranges", default="minmax", metavar="RULE", help="or percentile, mse (default: %(default)s)")


def _add_switches(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("better than rounding").add_argument
    add("--clip", default="mse", metavar="RULE", help="steps of weights; max for none (default: %(default)s)")
    add("--balance", action="store_true", help="move outliers of inputs into weights (SmoothQuant)")
    add("--bias-correction", action="store_true", help="take mean errors out through the biases")


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    about = "measure each layer by itself and write a plan in place of a file; --out is not needed"
    add = parser.add_argument_group("sensitivity", about).add_argument
    add("--sensitivity", type=Path, metavar="JSON", help="what was measured; goes on where it is there")
    add("--budget-mib", type=float, metavar="X", help="of the file: plan the least noise (with --plan-out)")
    add("--budget-db", type=float, metavar="X", help="signal/noise: plan the smallest (with --plan-out)")
