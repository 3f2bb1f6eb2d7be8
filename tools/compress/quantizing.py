"""What `python -m quantize` does: a float model is run, measured, and written in its quantized values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.checkpoint import Checkpoint, open_checkpoint
from cldm.compressed.pruned import shrink_to_quantized
from cldm.pipeline import Pipeline
from ldm.config import create_meta_model
from quantize.arithmetic import sqnr_db
from quantize.calibration.calls import RecordedCall, error_db, record
from quantize.calibration.ranges import static_layers, watch
from quantize.calibration.sensitivity import Measurements
from quantize.files.read import load_quantized
from quantize.files.write import Content, Schedule, hash_files, write_quantized
from quantize.model import check_schemes
from quantize.schemes import Ranges
from quantize.selection import Plan, check_weights, default_selection, make_plan, parse_rules, read_plan
from quantize.timesteps import TimestepGroups
from tools.compress.calibration import (
    NETWORKS,
    TEXT_PART,
    TIMED,
    FloatModel,
    Runs,
    control_of,
    examples_in,
    follow_model,
    source_files,
)
from tools.compress.report import size_table, sizes_of
from tools.compress.sensitivity import measure_layers, plan_within
from tools.compress.settings import QuantizeJob


@dataclass(frozen=True)
class Observed:
    """What the float model did with the calibration pictures."""

    ranges: Mapping[str, Ranges]  # of static layers' inputs
    calls: Mapping[str, list[RecordedCall]]  # by network
    prompts: list[str]
    texts: Tensor  # [prompts, n, d], their embeddings


def quantize(job: QuantizeJob) -> str:
    """Write the file of `job.files.out`; the table of what it saves and costs."""
    source, out = open_model(job), job.files.out
    model = source.pipeline.model
    seen = _observe(source) if source.runs else None
    ranges = seen.ranges if seen else {}
    schedule = Schedule(source.groups, TIMED) if ranges else None
    hashes, state = hash_files(source.weights), model.state_dict()
    content = Content(source.plan, schedule, hashes, job.schemes.clip)
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=1) as bar:
        write_quantized(out, model, state.items(), content, ranges, on_bytes=bar.update)
    written = open_checkpoint(out)
    errors = _errors(model.device, job.files.config, written, content, seen) if seen else {}
    if job.schemes.plan_out:
        _write_plan(job.schemes.plan_out, source.plan)
    table = size_table(sizes_of(state.items()), sizes_of(written.header.tensors.items()), errors)
    note = "" if seen else "\nerrors are measured on the pictures of --calibrate DIR"
    return f"{table}{note}\n{out}"


def plan(job: QuantizeJob) -> str:
    """Measure each layer; the plan that the budget buys, if there is one, and what is known about it."""
    source, path = open_model(job), job.budget.sensitivity
    about = {
        "sources": hash_files(source.weights),
        "steps": job.calibration.steps,
        "groups": job.calibration.groups,
        "ranges": "minmax",  # the only rule; there were others when the first such files were written
        "balance": False,  # likewise: some were measured with smoothed weights
        "examples": [[one.image.name, one.prompt] for one in source.runs.examples],
        "layers": dict(source.plan.layers),
    }
    measured = Measurements(source.plan.fingerprint, about)
    measured.resume(path)
    measure_layers(source, measured, path)
    chosen, summary = plan_within(source, measured, job.budget)
    if job.schemes.plan_out:
        _write_plan(job.schemes.plan_out, chosen)
        summary += f"\n{job.schemes.plan_out}"
    return summary


def open_model(job: QuantizeJob) -> FloatModel:
    """The model, its plan and its runs; everything that is wrong is said before anything is computed."""
    config, asked = job.files.config, job.calibration
    weights = source_files(config, job.files.weights, job.files.out)
    runs = None
    if asked.calibrate:
        runs = Runs(examples_in(asked.calibrate, config), control_of(weights), asked.steps)
    pipeline = Pipeline.from_files(config, *weights, dtype="fp32")
    groups = TimestepGroups.even(pipeline.model.num_timesteps, asked.groups)
    source = FloatModel(pipeline, weights, _plan(job, pipeline), groups, runs)
    if runs:
        check_weights(pipeline.model, source.plan)  # or the pictures would be NaN, which says less
    return source


def _plan(job: QuantizeJob, pipeline: Pipeline) -> Plan:
    asked = job.schemes
    if asked.plan:
        found = read_plan(asked.plan, pipeline.model)
    else:
        rules = parse_rules(asked.rule)
        selection = default_selection(asked.scheme, decoder=asked.decoder, compact=asked.compact, extra=rules)
        found = make_plan(pipeline.model, selection)
    if static_layers(found) and not job.calibration.calibrate:
        raise ValueError("static inputs need pictures: give --calibrate DIR, or use --scheme int8_dynamic")
    return found


def _observe(source: FloatModel) -> Observed:
    """Run the float model on the calibration pictures."""
    model, prompts = source.pipeline.model, source.runs.prompts
    with (
        record(model, list(NETWORKS.values())) as calls,
        follow_model(model, source.groups),
        watch(model, source.plan, source.groups.count) as calibration,
    ):
        source.runs.play(source.pipeline)
    ranges = calibration.all_ranges(source.plan)
    return Observed(ranges, calls, prompts, model.get_learned_conditioning(prompts))


def _errors(
    device: torch.device, config: Path, written: Checkpoint, content: Content, seen: Observed
) -> dict[str, float]:
    """Signal over noise of each part of the file, by the device's best backend.

    By the reference where the device cannot compute what the file is for (fp8).
    """
    quantized, backend = create_meta_model(config).eval(), None
    try:
        check_schemes(content.plan, device)
    except ValueError:
        backend = "reference"  # slow, and right everywhere
    shrink_to_quantized(quantized, written)  # what went in may have been pruned
    load_quantized(quantized, written.path, backend=backend, device=device)
    errors = {
        part: error_db(quantized.get_submodule(network), seen.calls[network])
        for part, network in NETWORKS.items()
    }
    return errors | {TEXT_PART: sqnr_db(seen.texts, quantized.get_learned_conditioning(seen.prompts))}


def _write_plan(path: Path, plan: Plan) -> None:
    path.write_text(plan.to_json() + "\n", encoding="utf-8")
