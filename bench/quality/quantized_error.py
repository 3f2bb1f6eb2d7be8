"""What each scheme costs in accuracy at the architecture of Stable Diffusion 1.5, with random weights.

    python -m bench.quality.quantized_error
    python -m bench.quality.quantized_error --schemes int8_dynamic int8_static --size 256 --json \
        outputs/error.json
    python -m bench.quality.quantized_error --schemes int8_dynamic --rule "*.skip_connection=int8_weight"

Random weights say nothing of pictures: they are a hard case for the arithmetic, since no part of the network
has learned to put up with noise. Of their two kinds (`bench.step.weights`) Gaussian ones, whose activations
keep their size and which need wider steps, are the harder. Errors are relative to the float model,
|a - b| / |b|: of one step, the median over four timesteps, and of the latents after DDIM steps without
guidance from the same noise. Small pictures make it affordable: channels and layers are those of the full
size. fp8 is computed by the reference, everything else as `load_quantized_model` has it. With --json, rows
that are in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from bench.step.files import Files, Inputs
from bench.step.weights import WEIGHTS
from quantize.selection import parse_rules

if TYPE_CHECKING:
    from torch import Tensor

    from cldm.cldm import ControlLDM

ROOT = Path(__file__).parents[2]
TIMESTEPS = (100, 350, 600, 850)
FLOAT = "float32"
SCHEMES = ("int8_weight", "int8_dynamic", "int8_static", "int4_group", "fp8_weight", "fp8_dynamic")
MIB = 2**20


def load(files: Files, scheme: str, size: int) -> ControlLDM:
    """The model of a scheme's file, made if it is not there."""
    from cldm.compressed.load import load_quantized_model
    from cldm.model import load_model
    from ldm.config import create_meta_model
    from quantize.files.read import load_quantized

    if scheme == FLOAT:
        return load_model(files.config, files.make_weights())
    files.make_weights()
    path = files.make_quantized(scheme, size)
    if not scheme.startswith("fp8"):
        return load_quantized_model(files.config, path)
    model = create_meta_model(files.config)
    load_quantized(model, path, backend="reference")  # a CPU has no arithmetic for fp8
    return model.eval()


@torch.inference_mode()
def outputs(model: ControlLDM, size: int, steps: int) -> dict[str, list[Tensor]]:
    """Predictions of single steps [1, 4, h, w], and the latents at the end of a walk of `steps`."""
    from ldm.models.diffusion.samplers import sample

    inputs = Inputs.random(model, size, 1)
    features = model.control_model.encode_hint(inputs.hint)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        control = model.control_model(x, features, t, inputs.text, encoded=True)
        cond = {"c_crossattn": [inputs.text], "c_concat": None, "control": control}
        return model.predict_eps(x, t, cond)

    single = [predict(inputs.x, torch.tensor([t])) for t in TIMESTEPS]
    return {"single": single, "walk": [sample("ddim", predict, inputs.x, steps, model.alphas_cumprod)]}


def apart(args: argparse.Namespace, scheme: str, path: Path) -> None:
    """`outputs` of a scheme, saved as `path` by a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.quality.quantized_error",
        "--config",
        args.config,
        "--folder",
        args.folder,
    ]
    command += ["--size", args.size, "--steps", args.steps, "--weights", args.weights]
    command += ["--pictures", args.pictures, *(f"--rule={rule}" for rule in args.rule)]
    command += ["--task", scheme, path]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Rows by their labels."""
    about = {name: getattr(args, name) for name in ("size", "steps", "weights")} | {
        "config": args.config.name
    }
    rows, labels = _kept(args.json, about), {scheme: _label(args, scheme) for scheme in args.schemes}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base.pt")
        for scheme, label in labels.items():
            if label in rows:
                continue
            if not base.is_file():
                apart(args, FLOAT, base)
            apart(args, scheme, got := Path(folder, "scheme.pt"))
            expected, found = torch.load(base), torch.load(got)
            errors = {
                what: [_error(*pair) for pair in zip(expected[what], found[what], strict=True)]
                for what in found
            }
            size = files_of(args).quantized(scheme, args.size).stat().st_size / MIB
            rows[label] = {"step": median(errors["single"]), "walk": errors["walk"][0], "mib": size}
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    return {label: rows[label] for label in labels.values()}


def table(rows: dict[str, dict[str, float]], steps: int) -> str:
    """A row a scheme."""
    lines = [f"| scheme | file, MiB | error of a step, % | after {steps} DDIM steps, % |", "|---" * 4 + "|"]
    for scheme, row in rows.items():
        lines.append(f"| {scheme} | {row['mib']:.1f} | {100 * row['step']:.2f} | {100 * row['walk']:.2f} |")
    return "\n".join(lines)


def files_of(args: argparse.Namespace) -> Files:
    """The files that the command line asks for."""
    return Files(args.config, args.folder, args.weights, tuple(args.rule), args.pictures)


def _label(args: argparse.Namespace, scheme: str) -> str:
    seen = [f"{args.pictures} pictures"] if scheme == "int8_static" and args.pictures != 1 else []
    return ", ".join([scheme, *seen, *args.rule])


def _kept(path: Path | None, about: dict[str, Any]) -> dict[str, dict[str, float]]:
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get("about") != about:
        raise ValueError(f"{path} was measured at {found.get('about')}, not at {about}: name another file")
    return found["rows"]


def _error(expected: Tensor, found: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.quantized_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES, help="rows of the table (default: all)")
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    add("--folder", type=Path, default=ROOT / "outputs/bench", help="of the files (default: %(default)s)")
    add("--weights", choices=WEIGHTS, default="gaussian", help="how they are drawn (default: %(default)s)")
    add("--rule", action="append", default=[], metavar="PATTERN=SCHEME", help="before those of the schemes")
    add("--pictures", type=int, default=1, help="for static ranges, random (default: %(default)s)")
    add("--size", type=int, default=128, help="side of the picture, pixels (default: %(default)s)")
    add("--steps", type=int, default=20, help="of DDIM (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="keeps the rows of several runs")
    add("--task", nargs=2, metavar=("SCHEME", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 with a sentence about what is wrong."""
    args = parse_args(argv)
    if args.task:
        scheme, path = args.task
        model = load(files_of(args), scheme, args.size)
        torch.save(outputs(model, args.size, args.steps), path)
        return 0
    try:
        parse_rules(args.rule)
        rows = run(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"{args.config.name}, {args.size} pixels, {args.weights} random weights")
    print(table(rows, args.steps))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
