"""What `python -m quantize.prune` does: weights go in, smaller ones come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from checkpoints.files.lazy import Values, walk
from cldm.cldm import ControlLDM
from cldm.compressed.pruned import prunable
from cldm.model import load_model
from cldm.pipeline import Pipeline
from common.atomic import MIB
from common.shell import Stopped
from ldm.config import read_config
from quantize.calibration.calls import RecordedCall, record
from quantize.prune.importance import keep_best, magnitude, taylor
from quantize.prune.masks import borders, share_of_zeros, why_not_two_of_four
from quantize.prune.units import Group
from quantize.selection import default_selection, make_plan
from quantize.timesteps import TimestepGroups
from tools.compress.calibration import Runs, control_of, examples_in, follow_model, source_files
from tools.compress.pruned_files import (
    begin_record,
    merged,
    with_two_of_four,
    with_zeros,
    without_units,
    write_pruned,
)
from tools.compress.report import size_table, sizes_of
from tools.compress.settings import Finetune, Magnitude, Strip, Structured, TwoOfFour
from tools.convert import conversions
from tools.convert.files import Target

TAYLOR_NETWORKS = ("control_model", "model.diffusion_model")
State = Mapping[str, Values]


def strip(job: Strip) -> str:
    """A file without what only training needs."""
    before = job.input.stat().st_size if job.input.is_file() else 0
    target = Target(job.out, force=job.force, dtype="fp16" if job.half else None)
    result = conversions.strip(job.input, target, use_ema=job.use_ema)
    return f"{result}\n{before / MIB:.1f} MiB before, {job.out.stat().st_size / MIB:.1f} MiB after"


def zero_small(job: Magnitude) -> str:
    """Zeros for the smallest weights of each layer, or of all."""
    model, weights = _open(job)
    layers = {name: model.get_submodule(name).weight for name in _selected(model)}
    limits, state = borders(layers, job.share, job.scope), merged(model, weights)
    step = {"how": "magnitude", "share": job.share, "scope": job.scope}
    return _write_masked(job, weights, state, with_zeros(state, limits), list(limits), step)


def zero_two_of_four(job: TwoOfFour) -> str:
    """Zeros for two of every four inputs of Linear layers."""
    model, weights = _open(job)
    layers = [name for name in _selected(model) if not why_not_two_of_four(model.get_submodule(name).weight)]
    state = merged(model, weights)
    return _write_masked(job, weights, state, with_two_of_four(state, layers), layers, {"how": "2:4"})


def remove_units(job: Structured) -> str:
    """Heads and channels leave, with all of their weights."""
    model, weights = _open(job)
    groups = prunable(model)
    kept = _kept(job, groups, _scores(job, model, weights, groups))
    state = merged(model, weights)
    smaller = without_units(state, groups, kept)
    counts = {g.name: len(kept[g.name]) for g in groups if len(kept.get(g.name, range(g.count))) < g.count}
    record = begin_record(job.config, weights)
    step = {"how": "structured", "by": job.by, "scope": job.scope, **job.shares}
    write_pruned(job.out, smaller, record.then(step, counts={**record.counts, **counts}))
    left = "\n".join(_left(kind, groups, kept) for kind, share in job.shares.items() if share)
    return f"{_sizes(state, smaller)}\n{left}\n{job.out}"


def finetune(job: Finetune) -> str:
    """A pruned model trained on; zeros stay zeros."""
    from trainer.tiny.recover import Recovery, recover  # Lightning, which the other commands do without

    model, weights = _open(job)
    record = begin_record(job.config, weights)
    folder = job.run or job.out.with_suffix(".run")
    settings = Recovery(folder, job.steps, job.learning_rate, job.cache, job.seed, job.workers, job.device)
    identity = "\n".join(f"{digest} {name}" for name, digest in sorted(record.sources.items()))
    state = merged(model, weights)
    try:
        recover(model, record.masked, identity, settings)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; the same command goes on from {folder}") from None
    trained = {name: model.state_dict()[name].detach().cpu().to(state[name].dtype) for name in state}
    step = {"how": "finetune", "steps": job.steps, "learning_rate": job.learning_rate, "seed": job.seed}
    write_pruned(job.out, trained, record.then(step))
    return f"{_sizes(state, trained)}\n{job.out}"


def _open(job: TwoOfFour) -> tuple[ControlLDM, list[Path]]:
    """The model in float32 and the files of its weights. Raises as `cldm.model.load_model`."""
    weights = source_files(job.config, job.weights, job.out)
    return load_model(job.config, *weights, dtype=torch.float32), weights


def _selected(model: ControlLDM) -> list[str]:
    """Layers that zeros may be in: what quantization selects by default, tables of words aside."""
    names = make_plan(model, default_selection("int8_weight")).layers
    return [name for name in names if not isinstance(model.get_submodule(name), nn.Embedding)]


def _write_masked(  # noqa: PLR0913 - what goes in, what comes out, what is said
    job: TwoOfFour, weights: list[Path], state: State, changed: State, layers: list[str], step: dict[str, Any]
) -> str:
    record = begin_record(job.config, weights)
    masked = {**record.masked, **dict.fromkeys(layers, step["how"])}
    write_pruned(job.out, changed, record.then(step, masked=masked))
    zeros = share_of_zeros(tensor for _, tensor in walk((n, changed[f"{n}.weight"]) for n in layers))
    note = f"{zeros:.1%} of the weights of {len(layers)} layers are zero; the file is no smaller for it"
    return f"{_sizes(state, changed)}\n{note}\n{job.out}"


def _kept(job: Structured, groups: Sequence[Group], scores: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The units that stay; each part of the model and each kind of unit by itself."""
    kept: dict[str, list[int]] = {}
    for part in dict.fromkeys(group.name.split(".")[0] for group in groups):
        for kind, share in job.shares.items():
            own = [one for one in groups if one.kind == kind and one.name.split(".")[0] == part]
            kept |= keep_best(scores, own, share, job.scope)
    return kept


def _left(kind: str, groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> str:
    own = [group for group in groups if group.kind == kind]
    stay, all_ = sum(len(kept[group.name]) for group in own), sum(group.count for group in own)
    return f"{kind}: {stay} of {all_} left in {len(own)} layers"


def _scores(
    job: Structured, model: ControlLDM, weights: Sequence[Path], groups: Sequence[Group]
) -> dict[str, Tensor]:
    scores = magnitude(model, groups)
    if job.by == "magnitude":
        return scores
    unet, noise = model.model.diffusion_model, torch.Generator().manual_seed(0)
    calls = _calls(job, model, weights)
    unet.encoder_learns = True
    with tqdm(total=sum(map(len, calls.values())), desc="importance", disable=None) as bar:
        for name in TAYLOR_NETWORKS:
            own = [group for group in groups if group.name.startswith(f"{name}.")]
            # What no call passes, such as a lite branch's work on the hint, goes by magnitude.
            scores |= taylor(model.get_submodule(name), model, calls[name], own, noise, bar.update)
    return scores


def _calls(job: Structured, model: ControlLDM, weights: Sequence[Path]) -> dict[str, list[RecordedCall]]:
    """Calls of the networks, one for each picture and group of timesteps."""
    pipeline = Pipeline(model, defaults=read_config(job.config).get("defaults"))
    groups = TimestepGroups.even(model.num_timesteps, job.groups)
    found: dict[str, list[RecordedCall]] = {name: [] for name in TAYLOR_NETWORKS}
    for example in examples_in(job.calibrate, job.config):
        with record(model, TAYLOR_NETWORKS) as calls, follow_model(model, groups):
            Runs([example], control_of(weights), job.steps).play(pipeline)
        for name, some in calls.items():
            found[name] += some
    return found


def _sizes(before: State, after: State) -> str:
    return size_table(sizes_of(before.items()), sizes_of(after.items()))


PRUNERS: dict[str, Callable[[Any], str]] = {
    "strip": strip,
    "magnitude": zero_small,
    "2:4": zero_two_of_four,
    "structured": remove_units,
    "finetune": finetune,
}
