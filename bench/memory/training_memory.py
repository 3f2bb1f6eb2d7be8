"""What the memory presets of training need, for Stable Diffusion 1.5 or another yaml.

    python -m bench.memory.training_memory
    python -m bench.memory.training_memory --measure --resume-path v1-5-pruned.safetensors

Without --measure nothing is computed or held: a step is run on tensors without contents and what lives at the
same time is counted (`trainer.memory`), in seconds, on any machine. --measure runs real steps on a card
and adds what torch allocated there at most.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
GB = 1e9
PAIRS = 16
STEPS = 3  # the optimizer's states are there from the second on
CACHED = " + --cache-latents"
COLUMNS = ("preset", "weights", "gradients", "optimizer", "activations", "sum", "host")
HEAD = f"| {' | '.join(COLUMNS)} |"


def rows(config: Path) -> "dict[str, object]":
    """The estimate of each preset, with and without cached latents, by its name."""
    from trainer.flags import parse_args
    from trainer.memory import estimate
    from trainer.plan import plan_of, read_setup
    from trainer.presets import PRESETS

    found = {}
    for name in PRESETS:
        args = parse_args(["--config", str(config), "--resume-path", "-", "--preset", name], "")
        plan = plan_of(args, read_setup(args))
        for label, cached in ((name, False), (name + CACHED, True)):
            found[label] = estimate(config, replace(plan, cached=cached))
    return found


def measure(config: Path, weights: list[str], label: str) -> float | None:
    """Most bytes that a few real steps of a preset hold on the card, in a process of its own."""
    from scenes.fill50k import make_dataset

    name, cached = label.removesuffix(CACHED), label.endswith(CACHED)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_dataset(out / "data", PAIRS)
        words = [
            sys.executable, "tutorial_train.py", "--config", config, "--resume-path", *weights,
            "--preset", name, "--max-train-steps", STEPS, "--image-log-steps", 0, "--report-to", "csv",
            "--data", out / "data", "--output-dir", out / "out", "--ignore-memory-estimate",
            *(["--cache-latents", out / "cache"] if cached else []),
        ]  # fmt: skip
        done = subprocess.run(
            [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(f"{label}: {done.stderr.strip().splitlines()[-1]}\n")
            return None
        (table,) = (out / "out").rglob("metrics.csv")
        lines = [line.split(",") for line in table.read_text().splitlines()]
        column = lines[0].index("peak_memory_gb")
        return max(float(line[column]) for line in lines[1:] if line[column])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory.training_memory", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model"
    )
    parser.add_argument("--measure", action="store_true", help="run real steps too; needs a card and weights")
    parser.add_argument("--resume-path", nargs="+", default=[], help="base model, for --measure")
    parser.add_argument("--json", action="store_true", help="numbers in bytes, for programs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 with a sentence where --measure has nothing to measure on."""
    args = parse_args(argv)
    import torch

    if args.measure and not (torch.cuda.is_available() and args.resume_path):
        sys.stderr.write(
            "--measure needs a CUDA card and --resume-path FILE: leave it out for the estimates\n"
        )
        return 2
    found = rows(args.config)
    if args.json:
        print(json.dumps({name: vars(one) | {"total": one.total} for name, one in found.items()}))
        return 0
    print(HEAD.removesuffix("|") + ("| measured |" if args.measure else "|"))
    print("|---" * (len(COLUMNS) + args.measure) + "|")
    for name, one in found.items():
        sizes = (one.weights, one.gradients, one.states, one.activations, one.total, one.host)
        cells = [name, *(f"{size / GB:.2f}" for size in sizes)]
        if args.measure:
            peak = measure(args.config, args.resume_path, name)
            cells.append("-" if peak is None else f"{peak:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
