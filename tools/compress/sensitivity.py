"""Which layers of a ControlNet model matter, measured on a few images, and the plan that a budget buys.

Control branch and U-Net are asked together: what the branch does counts by what the U-Net makes of it. The
hint is encoded anew each time, so that the branch's first layers play a part. Autoencoder and text encoder
answer for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from cldm.cldm import ControlLDM, scale_residuals
from cldm.controls import get_control
from common.atomic import MIB
from quantize.calibration.calls import RecordedCall, flat, record
from quantize.calibration.ranges import watch
from quantize.calibration.sensitivity import (
    FLOAT,
    HEADER_MARGIN,
    Candidates,
    Choice,
    EvalProbe,
    Measurements,
    candidates_of,
    choose,
    measure,
    noise_db,
)
from quantize.files.write import Content, file_size
from quantize.selection import Plan
from tools.compress.calibration import BRANCH, TEXT_PART, UNET, FloatModel, follow_model
from tools.compress.settings import Budget

AUTOENCODER = {"decoder": "first_stage_model.decoder", "encoder": "first_stage_model.encoder"}
SHOWN = 10  # layers in the table


@dataclass
class ModelCalls:
    """What a model was asked."""

    by_network: Mapping[str, list[RecordedCall]]  # the last call in each group of timesteps
    hint: Tensor | None = None  # [b, c, H, W], of the control branch's calls


def measure_layers(source: FloatModel, measured: Measurements, path: Path) -> None:
    """Measure what `measured` lacks; `path` holds all of it after every layer. Errors as of the runs."""
    model, runs = source.pipeline.model, source.runs
    candidates = candidates_of(model, source.plan.layers)
    wanted = {n: [s for s in (one.cheap, one.better) if s != FLOAT] for n, one in candidates.items()}
    if not wanted.keys() - measured.layers.keys():
        return
    with (
        record_calls(model) as calls,
        follow_model(model, source.groups),
        watch(model, source.plan, source.groups.count) as observer,
    ):
        runs.play(source.pipeline)
    pool = get_control(runs.control).pool or model.global_average_pooling
    probes, ranges = _probes(model, calls, runs.prompts, pool=pool), observer.all_ranges(source.plan)
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
    candidates = candidates_of(source.pipeline.model, source.plan.layers)
    cheapest = choose(candidates, measured.layers)
    base = _size(source, _plan_of(source.plan, cheapest, budget))
    mib, db = budget.budget_mib, budget.budget_db
    most_bytes = None if mib is None else cheapest.cost + int(mib * MIB) - base
    most_noise = None if db is None else 10 ** (-db / 10)
    choice = choose(candidates, measured.layers, most_bytes=most_bytes, most_noise=most_noise)
    plan = _plan_of(source.plan, choice, budget)
    size, worst = _size(source, plan), max(choice.noise.values(), default=0.0)
    if mib is not None and size > mib * MIB:
        raise ValueError(f"--budget-mib {mib:g}: the smallest plan takes {base / MIB:.2f} MiB")
    if most_noise is not None and worst > most_noise:
        raise ValueError(f"--budget-db {db:g}: the best plan has {noise_db(worst):.1f} dB")
    lines = [*_layer_lines(candidates, measured, choice), "expected signal/noise, dB: all cheap -> plan"]
    for probe, noise in choice.noise.items():
        lines.append(f"  {probe}  {noise_db(cheapest.noise[probe]):.1f} -> {noise_db(noise):.1f}")
    up = sum(scheme != candidates[name].cheap for name, scheme in choice.layers.items())
    missed = sum(not measured.layers[name].noise for name in candidates)
    lines.append(f"{up} of {len(candidates)} layers go up (*); {missed} were not reached")
    lines.append(f"{base / MIB:.2f} -> {size / MIB:.2f} MiB")
    return plan, "\n".join(lines)


@contextmanager
def record_calls(model: ControlLDM) -> Iterator[ModelCalls]:
    """Record what `model` is asked while the caller runs it, one picture and one control of strength 1."""
    branch, encode_hint = model.control_model, model.control_model.encode_hint
    networks = [BRANCH, UNET, *AUTOENCODER.values()]
    # Guidance asks the U-Net without control too.
    with record(model, networks, lambda call: call.kwargs.get("control", ()) is not None) as by_network:
        calls = ModelCalls(by_network)

        def encode(hint: Tensor) -> object:
            calls.hint = hint
            return encode_hint(hint)

        branch.encode_hint = encode
        try:
            yield calls
        finally:
            del branch.encode_hint  # the method of the class is seen again


def _probes(model: ControlLDM, calls: ModelCalls, prompts: Sequence[str], *, pool: bool) -> list[EvalProbe]:
    """pool: whether residuals were averaged over positions."""

    def steered(branch: RecordedCall, unet: RecordedCall) -> Tensor:
        x, _, *rest = branch.args  # without the hint as it was encoded then
        hint = model.control_model.encode_hint(calls.hint)  # anew: its layers are measured too
        residuals = model.control_model(x, hint, *rest, **branch.kwargs)
        residuals = scale_residuals(residuals, model.control_scales, pool=pool)
        return model.model.diffusion_model(*unet.args, **unet.kwargs | {"control": residuals})

    def controlled() -> Tensor:
        pairs = zip(calls.by_network[BRANCH], calls.by_network[UNET], strict=True)
        return flat(steered(*pair) for pair in pairs)

    def network(name: str) -> Callable[[], Tensor]:
        module, call = model.get_submodule(name), calls.by_network[name][0]  # pictures alone tell calls apart
        return lambda: flat([module(*call.args, **call.kwargs)])

    def text() -> Tensor:
        return flat([model.get_learned_conditioning(list(prompts))])

    return [
        EvalProbe("U-Net under control", (f"{BRANCH}.", "model."), controlled),
        *(EvalProbe(label, (f"{name}.",), network(name)) for label, name in AUTOENCODER.items()),
        EvalProbe("text encoder", (f"{TEXT_PART}.",), text),
    ]


def _plan_of(base: Plan, choice: Choice, budget: Budget) -> Plan:
    layers = {name: scheme for name, scheme in choice.layers.items() if scheme != FLOAT}
    given = {"budget-mib": budget.budget_mib, "budget-db": budget.budget_db}
    about = {name: f"{value:g}" for name, value in given.items() if value is not None}
    return replace(base, layers=layers, about={**base.about, **about})


def _size(source: FloatModel, plan: Plan) -> int:
    return file_size(source.pipeline.model, Content(plan)) + HEADER_MARGIN


def _layer_lines(
    candidates: Mapping[str, Candidates], measured: Measurements, choice: Choice
) -> Iterator[str]:
    yield "what hurts most, quantized alone, dB"
    noise = {name: one.noise for name, one in measured.layers.items() if one.noise and name in candidates}
    for name in sorted(noise, key=lambda name: -noise[name][candidates[name].cheap])[:SHOWN]:
        schemes = (candidates[name].cheap, candidates[name].better)
        described = ", ".join(f"{scheme} {noise_db(noise[name].get(scheme, 0.0)):.1f}" for scheme in schemes)
        yield f"  {name}  {described}{'' if choice.layers[name] == schemes[0] else ' *'}"
