"""One denoising step of Stable Diffusion 1.5 with ControlNet: ours beside diffusers and OpenVINO, in one run.

    python -m bench.step --only diffusers ours-int8-dynamic
    python -m bench.step --rounds 3 --json outputs/step.json --peer-python peers/bin/python
    python -m bench.step --only ours-fp32 ours-int8-dynamic-ruled --rule "*.skip_connection=int8_weight"
    python -m bench.step --picture --only diffusers ours-int8-dynamic --rounds 1

All have the same inputs and the same random weights, of one of two kinds (`bench.step.weights`). Each
contender has a process of its own and computes when its turn comes, while the others stand still. The first
run of each is not timed: it packs weights. Nor is the first of each turn (--settle): it finds cold caches,
which steps of one picture do not. With --json the rounds of several runs add up in one file. Peak memory is
the process's resident set, pages of mapped files included. Weights and converted models stay in --folder,
14 GB for all contenders and one kind of weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bench.step.contenders import CPU
from bench.step.cuda import CUDA
from bench.step.race import prepare, workers
from bench.step.results import (
    Results,
    compare,
    in_order,
    picture_table,
    read_results,
    step_table,
    write_results,
)
from bench.step.setting import Setting, missing
from bench.step.weights import WEIGHTS
from bench.step.worker import contenders_on
from quantize.selection import parse_rules

ROOT = Path(__file__).parents[2]
MULTIPLE = 64  # pixels: latents are an eighth, and the U-Net halves them three times


def race(args: argparse.Namespace, setting: Setting, names: list[str], results: Results) -> None:
    """Load the contenders, let each run once, then the rounds; what is measured is added to `results`."""
    kinds, own = contenders_on(setting.device), Path(sys.executable)
    python = {name: args.peer_python if args.peer_python and kinds[name].needs else own for name in names}
    prepare(names, setting, python)
    with tempfile.TemporaryDirectory() as folder, workers(names, setting, python, Path(folder)) as racing:
        for worker in tqdm(racing, desc="first runs", disable=None):
            row = results.setdefault(worker.name, {"runs": []})
            row |= {"loading": worker.loading, "first": worker.run()}
        for complaint in compare({worker.name: worker.output for worker in racing}, results):
            sys.stderr.write(f"{complaint}\n")
        for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
            if args.wait and not _told_to_go():
                break
            for worker in racing:
                results[worker.name]["runs"].append(worker.run(0 if setting.picture else args.settle))
            if args.json:
                write_results(args.json, setting, results)


def chosen(args: argparse.Namespace, setting: Setting) -> list[str]:
    """The contenders that take part, in the registry's order; those whose packages are missing are named.

    Raises ValueError for an unknown one, and where none is left.
    """
    known = contenders_on(setting.device)
    if unknown := set(args.only or ()) - known.keys():
        raise ValueError(f"unknown contender {min(unknown)!r}: use some of {', '.join(known)}")
    names = []
    for name in (name for name in known if not args.only or name in args.only):
        if known[name].ruled and not (setting.rules or args.only):
            continue
        reason = None if args.peer_python else missing(known[name])
        if known[name].ruled and not setting.rules:
            reason = "there is no --rule"
        if setting.picture and known[name].picture is None:
            reason = "it has no whole pipeline here"
        if reason:
            sys.stderr.write(f"{name} is left out: {reason}\n")
        else:
            names.append(name)
    if not names:
        raise ValueError("no contender is left to measure")
    return names


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    listed = f"{', '.join(CPU)}; with --device cuda {', '.join(CUDA)}"
    add("--only", nargs="+", metavar="NAME", help=f"{listed} (default: all)")
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    add("--folder", type=Path, default=ROOT / "outputs/bench", help="of the files (default: %(default)s)")
    add("--weights", choices=WEIGHTS, default="gaussian", help="how they are drawn (default: %(default)s)")
    add("--rule", action="append", default=[], metavar="PATTERN=SCHEME", help="of the contenders `...-ruled`")
    add("--size", type=int, default=512, help="side of the picture, pixels (default: %(default)s)")
    add("--batch", type=int, default=2, help="latents a step, 2 for guidance (default: %(default)s)")
    add("--threads", type=int, default=2, help="of each contender (default: %(default)s)")
    add("--rounds", type=int, default=3, help="timed runs of each (default: %(default)s)")
    add("--settle", type=int, default=1, help="untimed runs before each timed one (default: %(default)s)")
    add("--picture", action="store_true", help="whole pictures: text, steps with guidance, decoding")
    add("--steps", type=int, default=20, help="of DDIM, with --picture (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="keeps the rounds of several runs")
    add("--peer-python", type=Path, metavar="PATH", help="Python that has the peers' packages, if not this")
    add("--wait", action="store_true", help="say `ready` before each round and begin it when a line comes in")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 with a sentence about what is wrong."""
    args = parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _run(args: argparse.Namespace) -> int:
    if min(args.rounds, args.batch, args.threads, args.steps, args.size) < 1 or args.size % MULTIPLE:
        raise ValueError(
            f"{args.rounds} rounds, {args.threads} threads, batch {args.batch}, {args.steps} steps, "
            f"{args.size} pixels: give 1 or more, and pixels in steps of {MULTIPLE}"
        )
    parse_rules(args.rule)
    names = ("config", "folder", "size", "batch", "threads", "device", "picture", "steps", "weights")
    setting = Setting(**{name: getattr(args, name) for name in names}, rules=tuple(args.rule))
    if not setting.picture:
        setting = replace(setting, steps=1)
    if setting.device == "cuda" and not _has_card():
        print("not measured: there is no CUDA card here")
        return 0
    contenders, results = chosen(args, setting), read_results(args.json, setting)
    race(args, setting, contenders, results)
    rows = in_order(results, contenders_on(setting.device))
    where = f"{setting.device}, {args.threads} threads"
    print(f"{args.config.name}, {args.weights} weights, {args.size} pixels, batch {args.batch}, {where}")
    print(picture_table(rows, args.steps) if setting.picture else step_table(rows))
    return 0


def _told_to_go() -> bool:
    sys.stderr.write("ready\n")
    return bool(sys.stdin.readline())


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    raise SystemExit(main())
