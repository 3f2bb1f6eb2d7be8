"""Which layers of a ControlNet model matter, measured on a few pictures, and the plan that a budget buys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cldm.controls import get_control
from quantize.calibration.budget import FLOAT, HEADER_MARGIN, Candidates, Choice, candidates_of, choose
from quantize.calibration.ranges import watch
from quantize.calibration.sensitivity import Measurements, measure, noise_db
from quantize.files.write import MIB, Content, file_size
from quantize.selection import Plan
from quantize.timesteps import TimestepGroups
from tools.compress.calibration import Runs, followed
from tools.compress.probes import probes_of, record_calls

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

SHOWN = 10  # layers in the table


@dataclass(frozen=True)
class Setting:
    """What is measured on what. rule: of the ranges of static inputs
    (`quantize.calibration.ranges.RANGES`).
    """

    pipeline: Pipeline
    plan: Plan
    groups: TimestepGroups
    runs: Runs
    rule: str


@dataclass(frozen=True)
class Budget:
    """mib: of the whole file; db: signal over noise in every probe's answers. At most one is given."""

    mib: float | None = None
    db: float | None = None

    def __post_init__(self) -> None:
        if self.mib is not None and self.db is not None:
            raise ValueError("--budget-mib and --budget-db are two budgets: give one")
        for flag, value in (("--budget-mib", self.mib), ("--budget-db", self.db)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{flag} {value:g}: give a number above 0")


def measure_effects(setting: Setting, measured: Measurements, path: Path) -> None:
    """Measure what `measured` lacks; `path` holds all of it after every layer. Errors as of the runs."""
    model, plan = setting.pipeline.model, setting.plan
    wanted = {
        name: [scheme for scheme in (one.cheap, one.better) if scheme != FLOAT]
        for name, one in candidates_of(model, plan.layers).items()
    }
    if not wanted.keys() - measured.effects.keys():
        return
    with (
        record_calls(model) as found,
        followed(model, setting.groups),
        watch(model, plan, setting.groups.count) as calibration,
    ):
        setting.runs.play(setting.pipeline)
    ranges = calibration.all_ranges(plan, setting.rule)
    pool = get_control(setting.runs.control).pool or model.global_average_pooling
    probes = probes_of(model, found, setting.runs.prompts, pool=pool)
    with (
        followed(model, setting.groups),
        tqdm(total=len(wanted), initial=len(measured.effects), unit="layer", disable=None) as bar,
    ):
        for name, effect in measure(model, wanted, probes, ranges, dict(measured.effects)):
            measured.effects[name] = effect
            measured.save(path)
            bar.update()


def plan_within(setting: Setting, measured: Measurements, budget: Budget) -> tuple[Plan, str]:
    """The plan that a budget buys, and what is known about it, in words.

    Raises ValueError in one sentence for a budget that no plan keeps.
    """
    model, candidates = setting.pipeline.model, candidates_of(setting.pipeline.model, setting.plan.layers)
    cheapest = choose(candidates, measured.effects)
    base = _size(setting, _plan_of(setting.plan, cheapest, budget))
    limits = {}
    if budget.mib is not None:
        limits["most_bytes"] = cheapest.cost + int(budget.mib * MIB) - base
    if budget.db is not None:
        limits["most_noise"] = 10 ** (-budget.db / 10)
    choice = choose(candidates, measured.effects, **limits)
    plan = _plan_of(setting.plan, choice, budget)
    size, worst = _size(setting, plan), max(choice.noise.values(), default=0.0)
    if budget.mib is not None and size > budget.mib * MIB:
        raise ValueError(f"--budget-mib {budget.mib:g}: the smallest plan takes {base / MIB:.2f} MiB")
    if budget.db is not None and worst > limits["most_noise"]:
        raise ValueError(f"--budget-db {budget.db:g}: the best plan has {noise_db(worst):.1f} dB")
    plan.check(model)
    return plan, _summary(candidates, measured, (cheapest, choice), (base, size))


def _plan_of(base: Plan, choice: Choice, budget: Budget) -> Plan:
    kept = {name: scheme for name, scheme in choice.layers.items() if scheme != FLOAT}
    given = {"budget-mib": budget.mib, "budget-db": budget.db}
    about = {name: f"{value:g}" for name, value in given.items() if value is not None}
    return replace(base, layers=kept, about={**base.about, **about})


def _size(setting: Setting, plan: Plan) -> int:
    return file_size(setting.pipeline.model, Content(plan)) + HEADER_MARGIN


def _summary(
    candidates: Mapping[str, Candidates],
    measured: Measurements,
    choices: tuple[Choice, Choice],
    sizes: tuple[int, int],
) -> str:
    cheapest, choice = choices
    reached = {name: one for name, one in measured.effects.items() if one.noise and name in candidates}
    worst = sorted(reached, key=lambda name: -reached[name].noise[candidates[name].cheap])[:SHOWN]
    lines = ["what hurts most, quantized alone, dB"]
    for name in worst:
        noise = (noise_db(reached[name].noise.get(scheme, 0.0)) for scheme in _schemes(candidates[name]))
        described = (f"{s} {db:.1f}" for s, db in zip(_schemes(candidates[name]), noise, strict=True))
        lines.append(
            f"  {name}  {', '.join(described)}{'' if choice.layers[name] == candidates[name].cheap else ' *'}"
        )
    lines.append("expected signal/noise, dB: all cheap -> plan")
    lines += [
        f"  {probe}  {noise_db(cheapest.noise[probe]):.1f} -> {noise_db(choice.noise[probe]):.1f}"
        for probe in choice.noise
    ]
    up = sum(scheme != candidates[name].cheap for name, scheme in choice.layers.items())
    lines.append(
        f"{up} of {len(candidates)} layers go up (*); {len(candidates) - len(reached)} were not reached"
    )
    lines.append(f"{sizes[0] / MIB:.2f} -> {sizes[1] / MIB:.2f} MiB")
    return "\n".join(lines)


def _schemes(candidates: Candidates) -> tuple[str, str]:
    return candidates.cheap, candidates.better
