"""A model's weights as a quantized file, with a table of what it saves and what it costs.

    python -m quantize models/tiny.yaml --scheme int8_static --calibrate test_imgs --out tiny-int8.safetensors
    python generate.py --quantized tiny-int8.safetensors --image test_imgs/circle.png --prompt "cyan circle"
    python -m quantize models/tiny.yaml --scheme int4_group --calibrate test_imgs --sensitivity noise.json \\
        --budget-mib 12 --plan-out plan.json
    python -m quantize models/tiny.yaml --plan plan.json --out tiny-int4.safetensors

A picture's prompt for calibration is in the text file of its name, is one of those that the yaml lists under
`calibration:`, or is the picture's name. Exit codes: 0; 2 with one sentence about what is wrong; 130 after
Ctrl-C: nothing is written then, but --sensitivity keeps what was measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.shell import run_command
from tools.compress.quantize_flags import parse_args

if TYPE_CHECKING:
    from torch import Tensor

    from cldm.pipeline import Pipeline
    from quantize.selection import Plan
    from quantize.spec import Ranges
    from quantize.timesteps import TimestepGroups
    from tools.compress.calibration import Runs
    from tools.compress.report import Seen


@dataclass(frozen=True)
class Job:
    """What is to be done with which model. weights: its files; runs: of calibration, None for none."""

    args: argparse.Namespace
    pipeline: Pipeline
    plan: Plan
    groups: TimestepGroups
    weights: list[Path]
    runs: Runs | None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv, __doc__)
    if args.sensitivity:
        stopped = f"stopped; what was measured is in {args.sensitivity}: the same command goes on"
        return run_command(lambda: _plan_budget(_prepare(args)), stopped=stopped)
    return run_command(lambda: _run(_prepare(args)))


def _prepare(args: argparse.Namespace) -> Job:
    """The model, and everything that is wrong with the command line before anything is computed."""
    from cldm.pipeline import Pipeline
    from ldm.config import read_config
    from quantize.selection import check_weights
    from quantize.timesteps import TimestepGroups
    from tools.compress.calibration import Runs, control_of, examples_in

    listed = [args.config.parent / name for name in read_config(args.config).get("weights", [])]
    weights = args.weights or listed
    _check_files(args, weights)
    _check_switches(args)
    runs = None
    if args.calibrate:
        runs = Runs(examples_in(args.calibrate, args.config), control_of(weights), args.steps)
    pipeline = Pipeline.from_files(args.config, *weights, dtype="fp32")
    groups = TimestepGroups.even(pipeline.model.num_timesteps, args.groups)
    plan = _plan(args, pipeline)
    if runs:
        check_weights(pipeline.model, plan)  # or the pictures would be NaN, which says less
    return Job(args, pipeline, plan, groups, weights, runs)


def _check_files(args: argparse.Namespace, weights: list[Path]) -> None:
    from quantize.files.read import refuse_quantized_file

    if not (args.out or args.sensitivity):
        raise ValueError("nothing to write: give --out FILE.safetensors, or --sensitivity JSON")
    for path in weights:
        refuse_quantized_file(path)
        if args.out and path.resolve() == args.out.resolve():
            raise ValueError(f"--out {args.out} is the file that goes in: choose another name")
    for flag, path in (("--plan-out", args.plan_out), ("--sensitivity", args.sensitivity)):
        if path and not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} for {flag}: create it first")


def _check_switches(args: argparse.Namespace) -> None:
    from quantize.arithmetic import CLIPS
    from quantize.calibration.ranges import RANGES

    if args.clip not in CLIPS:
        raise ValueError(f"--clip {args.clip}: use one of {', '.join(CLIPS)}")
    if args.ranges not in RANGES:
        raise ValueError(f"--ranges {args.ranges}: use one of {', '.join(RANGES)}")
    for name in ("balance", "bias_correction", "sensitivity"):
        if getattr(args, name) and not args.calibrate:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} looks at the model at work: give pictures by --calibrate DIR")


def _plan(args: argparse.Namespace, pipeline: Pipeline) -> Plan:
    from quantize.calibration.ranges import static_layers
    from quantize.schemes import get_scheme
    from quantize.selection import default_selection, make_plan, parse_rules, read_plan

    get_scheme(args.scheme)
    if args.plan:
        plan = read_plan(args.plan, pipeline.model)
    else:
        extra = parse_rules(args.rule or ())
        selection = default_selection(args.scheme, decoder=args.decoder, compact=args.compact, extra=extra)
        plan = make_plan(pipeline.model, selection)
    if static_layers(plan) and not args.calibrate:
        raise ValueError("static inputs need pictures: give --calibrate DIR, or use --scheme int8_dynamic")
    return plan


def _run(job: Job) -> str:
    """Write the file; the table."""
    from quantize.calibration.bias_correction import corrected_biases
    from quantize.calibration.report import table
    from quantize.files.write import Content, Schedule, hash_files
    from tools.compress.calibration import TIMED, balance
    from tools.compress.report import rows_of

    args, model = job.args, job.pipeline.model
    about = dict(job.plan.about)
    if args.balance:
        about["balanced folds"] = str(balance(job.pipeline, job.runs))
    seen = _watch(job) if job.runs else None
    state = model.state_dict()
    if args.bias_correction:
        biases = corrected_biases(model, job.plan, seen.means, args.clip)
        about["corrected biases"] = str(len(biases))
        state |= biases
    schedule = Schedule(job.groups, TIMED) if seen and seen.ranges else None
    content = Content(replace(job.plan, about=about), schedule, hash_files(job.weights), args.clip)
    _write(job, state, content, seen.ranges if seen else {})
    rows = rows_of(job.pipeline, args.config, args.out, seen)
    if args.plan_out:
        args.plan_out.write_text(job.plan.to_json() + "\n", encoding="utf-8")
    note = "" if seen else "\nerrors are measured on the pictures of --calibrate DIR"
    return f"{table(rows)}{note}\n{args.out}"


def _watch(job: Job) -> Seen:
    """Run the float model on the calibration pictures."""
    from quantize.calibration.bias_correction import Means, correctable
    from quantize.calibration.ranges import watch, watch_inputs
    from quantize.calibration.report import record
    from tools.compress.calibration import NETWORKS, followed
    from tools.compress.report import Seen

    model, means = job.pipeline.model, Means(job.pipeline.model)
    names = correctable(model, job.plan) if job.args.bias_correction else []
    with (
        record(model, list(NETWORKS.values())) as calls,
        followed(model, job.groups),
        watch(model, job.plan, job.groups.count) as calibration,
        watch_inputs(model, names, means.see),
    ):
        job.runs.play(job.pipeline)
    texts = model.get_learned_conditioning(job.runs.prompts)
    return Seen(calibration.all_ranges(job.plan, job.args.ranges), calls, job.runs.prompts, texts, means)


def _plan_budget(job: Job) -> str:
    """Measure each layer; the plan that the budget buys, if there is one."""
    from quantize.calibration.sensitivity import Measurements
    from quantize.files.write import hash_files
    from tools.compress.calibration import balance
    from tools.compress.sensitivity import Budget, Setting, measure_effects, plan_within

    args = job.args
    budget = Budget(args.budget_mib, args.budget_db)
    if (args.budget_mib is not None or args.budget_db is not None) and not args.plan_out:
        raise ValueError("a budget makes a plan: say where it goes by --plan-out JSON")
    if args.balance:
        balance(job.pipeline, job.runs)
    setting = Setting(job.pipeline, job.plan, job.groups, job.runs, args.ranges)
    about = {
        "sources": hash_files(job.weights), "steps": args.steps, "groups": args.groups, "ranges": args.ranges,
        "examples": [[one.picture.name, one.prompt] for one in job.runs.examples],
        "layers": dict(job.plan.layers), "balance": args.balance,
    }  # fmt: skip
    measured = Measurements(job.plan.fingerprint, about)
    measured.resume(args.sensitivity)
    measure_effects(setting, measured, args.sensitivity)
    plan, summary = plan_within(setting, measured, budget)
    if args.plan_out:
        args.plan_out.write_text(plan.to_json() + "\n", encoding="utf-8")
        summary += f"\n{args.plan_out}"
    return summary


def _write(job: Job, state: Mapping[str, Tensor], content: Any, ranges: Mapping[str, Ranges]) -> None:
    from tqdm import tqdm

    from quantize.files.write import write_quantized

    with tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=1) as bar:
        model = job.pipeline.model
        write_quantized(job.args.out, model, state.items(), content, ranges, on_bytes=bar.update)


if __name__ == "__main__":
    raise SystemExit(main())
