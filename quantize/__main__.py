"""A model's weights as a quantized file, with a table of what it saves and what it costs.

    python -m quantize models/tiny.yaml --scheme int8_static --calibrate test_imgs --out tiny-int8.safetensors
    python generate.py --quantized tiny-int8.safetensors --image test_imgs/circle.png --prompt "cyan circle"

A picture's prompt for calibration is in the text file of its name, is one of those that the yaml lists under
`calibration:`, or is the picture's name. Exit codes: 0; 2 with one sentence about what is wrong; 130 after
Ctrl-C, nothing is written then.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cldm.convert_shell import answer
from cldm.options import USER_ERROR
from quantize.flags import parse_args

if TYPE_CHECKING:
    from torch import Tensor

    from cldm.pipeline import Pipeline
    from quantize.report import Call, Row
    from quantize.selection import Plan
    from quantize.spec import Ranges
    from quantize.timesteps import TimestepGroups

LABELS = {
    "control_model": "control branch",
    "model": "U-Net",
    "first_stage_model": "autoencoder",
    "cond_stage_model": "text encoder",
}


@dataclass(frozen=True)
class Seen:
    """What the float model did with the calibration pictures; texts: embeddings of their prompts."""

    ranges: Mapping[str, Ranges]
    calls: Mapping[str, list[Call]]
    prompts: list[str]
    texts: Tensor


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv, __doc__)
    return answer(lambda: _run(args), USER_ERROR)


def _run(args: argparse.Namespace) -> str:
    """Write the file; the table."""
    from cldm.calibration import TIMED
    from cldm.model import read_config
    from cldm.pipeline import Pipeline
    from quantize.loading import refuse_quantized_file
    from quantize.report import table
    from quantize.storage import Content, Schedule, hash_files
    from quantize.timesteps import TimestepGroups

    listed = [args.config.parent / name for name in read_config(args.config).get("weights", [])]
    weights = args.weights or listed
    for path in weights:
        refuse_quantized_file(path)
        if path.resolve() == args.out.resolve():
            raise ValueError(f"--out {args.out} is the file that goes in: choose another name")
    pipeline = Pipeline.from_files(args.config, *weights, dtype="fp32")
    plan = _plan(args, pipeline)
    groups = TimestepGroups.even(pipeline.model.num_timesteps, args.groups)
    seen = _watch(args, pipeline, plan, groups, weights) if args.calibrate else None
    content = Content(plan, Schedule(groups, TIMED) if seen and seen.ranges else None, hash_files(weights))
    _write(args.out, pipeline, content, seen.ranges if seen else {})
    rows = _rows(args, pipeline, seen)
    if args.plan_out:
        args.plan_out.write_text(plan.to_json() + "\n", encoding="utf-8")
    note = "" if seen else "\nerrors are measured on the pictures of --calibrate DIR"
    return f"{table(rows)}{note}\n{args.out}"


def _plan(args: argparse.Namespace, pipeline: Pipeline) -> Plan:
    from quantize.calibrate import RANGES, static_layers
    from quantize.schemes import get_scheme
    from quantize.selection import Rule, default_selection, make_plan, read_plan

    get_scheme(args.scheme)
    if args.ranges not in RANGES:
        raise ValueError(f"--ranges {args.ranges}: use one of {', '.join(RANGES)}")
    if args.plan:
        plan = read_plan(args.plan, pipeline.model)
    else:
        pairs = [rule.partition("=") for rule in args.rule or ()]
        extra = tuple(Rule(name, None if scheme == "float" else scheme) for name, _, scheme in pairs)
        selection = default_selection(args.scheme, decoder=args.decoder, compact=args.compact, extra=extra)
        plan = make_plan(pipeline.model, selection)
    if static_layers(plan) and not args.calibrate:
        raise ValueError("static inputs need pictures: give --calibrate DIR, or use --scheme int8_dynamic")
    return plan


def _watch(
    args: argparse.Namespace, pipeline: Pipeline, plan: Plan, groups: TimestepGroups, weights: Sequence[Path]
) -> Seen:
    """Run the float model on the calibration pictures."""
    from cldm.calibration import NETWORKS, Runs, control_of, examples_in, followed
    from quantize.calibrate import watch
    from quantize.report import record

    model, examples = pipeline.model, examples_in(args.calibrate, args.config)
    runs = Runs(examples, control_of(weights), args.steps)
    with (
        record(model, list(NETWORKS.values())) as calls,
        followed(model, groups),
        watch(model, plan, groups.count) as calibration,
    ):
        runs.play(pipeline)
    texts = model.get_learned_conditioning(runs.prompts)
    return Seen(calibration.all_ranges(plan, args.ranges), calls, runs.prompts, texts)


def _write(path: Path, pipeline: Pipeline, content: Any, ranges: Mapping[str, Ranges]) -> None:
    from tqdm import tqdm

    from quantize.storage import write_quantized

    with tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=1) as bar:
        state = pipeline.model.state_dict()
        write_quantized(path, pipeline.model, state.items(), content, ranges, on_bytes=bar.update)


def _rows(args: argparse.Namespace, pipeline: Pipeline, seen: Seen | None) -> list[Row]:
    """The table's rows, errors measured on the file that was written."""
    from cldm.calibration import NETWORKS, TEXT_PART
    from cldm.model import create_meta_model
    from quantize.arithmetic import sqnr_db
    from quantize.loading import load_quantized
    from quantize.report import error_db, part_sizes

    rows = [row for row in part_sizes(pipeline.model, args.out) if row.part in LABELS]
    errors: dict[str, float] = {}
    if seen:
        device = pipeline.model.device
        quantized = create_meta_model(args.config).eval()
        load_quantized(quantized, args.out, backend=_backend(args.out, device), device=device)
        for part, network in NETWORKS.items():
            errors[part] = error_db(quantized.get_submodule(network), seen.calls[network])
        errors[TEXT_PART] = sqnr_db(seen.texts, quantized.get_learned_conditioning(seen.prompts))
    return [replace(row, part=LABELS[row.part], error_db=errors.get(row.part)) for row in rows]


def _backend(path: Path, device: Any) -> str | None:
    """The device's best, or the reference where the device cannot compute what the file is for (fp8)."""
    from quantize.loading import read_content
    from quantize.model import check_schemes

    try:
        check_schemes(read_content(path).plan, device)
    except ValueError:
        return "reference"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
