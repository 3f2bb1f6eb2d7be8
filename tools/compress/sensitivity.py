"""Which layers of a ControlNet model matter, measured on a few images, and the plan that a budget buys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cldm.controls import get_control
from common.atomic import MIB
from quantize.calibration.budget import FLOAT, HEADER_MARGIN, Candidates, Choice, candidates_of, choose
from quantize.calibration.ranges import watch
from quantize.calibration.sensitivity import Measurements, measure, noise_db
from quantize.files.write import Content, file_size
from quantize.selection import Plan
from tools.compress.calibration import FloatModel, follow_model
from tools.compress.probes import probes_of, record_calls
from tools.compress.settings import Budget

SHOWN = 10  # layers in the table


def measure_layers(source: FloatModel, measured: Measurements, path: Path) -> None:
    """Measure what `measured` lacks; `path` holds all of it after every layer. Errors as of the runs."""
    model, runs = source.pipeline.model, source.runs
    wanted = {
        name: [scheme for scheme in one.schemes if scheme != FLOAT]
        for name, one in candidates_of(model, source.plan.layers).items()
    }
    if not wanted.keys() - measured.layers.keys():
        return
    with (
        record_calls(model) as calls,
        follow_model(model, source.groups),
        watch(model, source.plan, source.groups.count) as observer,
    ):
        runs.play(source.pipeline)
    ranges = observer.all_ranges(source.plan)
    pool = get_control(runs.control).pool or model.global_average_pooling
    probes = probes_of(model, calls, runs.prompts, pool=pool)
    with (
        follow_model(model, source.groups),
        tqdm(total=len(wanted), initial=len(measured.layers), unit="layer", disable=None) as bar,
    ):
        for name, sensitivity in measure(model, wanted, probes, ranges, dict(measured.layers)):
            measured.layers[name] = sensitivity
            measured.save(path)
            bar.update()


def plan_within(source: FloatModel, measured: Measurements, budget: Budget) -> tuple[Plan, str]:
    """The plan that a budget buys, and what is known about it, in words.

    Raises ValueError in one sentence for a budget that no plan keeps.
    """
    model, candidates = source.pipeline.model, candidates_of(source.pipeline.model, source.plan.layers)
    cheapest = choose(candidates, measured.layers)
    base = _size(source, _plan_of(source.plan, cheapest, budget))
    mib, db = budget.budget_mib, budget.budget_db
    limits = {}
    if mib is not None:
        limits["most_bytes"] = cheapest.cost + int(mib * MIB) - base
    if db is not None:
        limits["most_noise"] = 10 ** (-db / 10)
    choice = choose(candidates, measured.layers, **limits)
    plan = _plan_of(source.plan, choice, budget)
    size, worst = _size(source, plan), max(choice.noise.values(), default=0.0)
    if mib is not None and size > mib * MIB:
        raise ValueError(f"--budget-mib {mib:g}: the smallest plan takes {base / MIB:.2f} MiB")
    if db is not None and worst > limits["most_noise"]:
        raise ValueError(f"--budget-db {db:g}: the best plan has {noise_db(worst):.1f} dB")
    plan.check(model)
    return plan, _summary(candidates, measured, (cheapest, choice), (base, size))


def _plan_of(base: Plan, choice: Choice, budget: Budget) -> Plan:
    layers = {name: scheme for name, scheme in choice.layers.items() if scheme != FLOAT}
    given = {"budget-mib": budget.budget_mib, "budget-db": budget.budget_db}
    about = {name: f"{value:g}" for name, value in given.items() if value is not None}
    return replace(base, layers=layers, about={**base.about, **about})


def _size(source: FloatModel, plan: Plan) -> int:
    return file_size(source.pipeline.model, Content(plan)) + HEADER_MARGIN


def _summary(
    candidates: Mapping[str, Candidates],
    measured: Measurements,
    choices: tuple[Choice, Choice],
    sizes: tuple[int, int],
) -> str:
    cheapest, choice = choices
    reached = {name: one for name, one in measured.layers.items() if one.noise and name in candidates}
    worst = sorted(reached, key=lambda name: -reached[name].noise[candidates[name].cheap])[:SHOWN]
    lines = ["what hurts most, quantized alone, dB"]
    for name in worst:
        schemes = candidates[name].schemes
        described = ", ".join(f"{s} {noise_db(reached[name].noise.get(s, 0.0)):.1f}" for s in schemes)
        lines.append(f"  {name}  {described}{'' if choice.layers[name] == schemes[0] else ' *'}")
    lines.append("expected signal/noise, dB: all cheap -> plan")
    for probe, noise in choice.noise.items():
        lines.append(f"  {probe}  {noise_db(cheapest.noise[probe]):.1f} -> {noise_db(noise):.1f}")
    up = sum(scheme != candidates[name].cheap for name, scheme in choice.layers.items())
    missed = len(candidates) - len(reached)
    lines.append(f"{up} of {len(candidates)} layers go up (*); {missed} were not reached")
    lines.append(f"{sizes[0] / MIB:.2f} -> {sizes[1] / MIB:.2f} MiB")
    return "\n".join(lines)
