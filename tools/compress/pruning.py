"""What `python -m quantize.prune` does: weights go in, smaller ones come out.

Tensors keep the types of their files, and are read when they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import Values, by_rows, walk
from checkpoints.files.write import write_weights
from cldm.cldm import ControlLDM
from cldm.compressed.pruned import TWO_OF_FOUR, prunable
from cldm.model import load_model
from cldm.pipeline import Pipeline
from common.atomic import MIB
from common.shell import Stopped
from ldm.config import read_config
from quantize.calibration.calls import RecordedCall, record
from quantize.files.write import hash_files
from quantize.prune.importance import keep_best, magnitude, taylor
from quantize.prune.masks import share_of_zeros, two_of_four, why_not_two_of_four
from quantize.prune.record import METADATA_KEY, SUFFIX, Record
from quantize.prune.units import Group, Kept, take
from quantize.selection import default_selection, make_plan
from quantize.timesteps import TimestepGroups
from tools.compress.calibration import TIMED, Runs, control_of, examples_in, follow_model, source_files
from tools.compress.report import size_table, sizes_of
from tools.compress.settings import Finetune, Strip, Structured, TwoOfFour
from tools.convert import conversions
from tools.convert.files import Target

State = Mapping[str, Values]
ZEROED = default_selection("int8_weight")  # what bears rounding bears zeros: the first and last layers do not


@dataclass(frozen=True)
class DenseModel:
    """What is pruned."""

    model: ControlLDM  # in float32
    weights: Sequence[Path]
    state: State  # the tensors of these files, in their types
    record: Record  # what was done to them before


def strip(job: Strip) -> str:
    """A file without what only training needs."""
    before = job.input.stat().st_size if job.input.is_file() else 0
    target = Target(job.out, force=job.force, dtype="fp16" if job.half else None)
    result = conversions.strip(job.input, target, use_ema=job.use_ema)
    return f"{result}\n{before / MIB:.1f} MiB before, {job.out.stat().st_size / MIB:.1f} MiB after"


def zero_two_of_four(job: TwoOfFour) -> str:
    """Zeros for two of every four inputs of the Linear layers that quantization selects by default."""
    source = _open(job)
    found = {name: source.model.get_submodule(name) for name in make_plan(source.model, ZEROED).layers}
    layers = [
        name for name, layer in found.items()
        if isinstance(layer, nn.Linear) and not why_not_two_of_four(layer.weight)
    ]  # fmt: skip
    weights = {f"{name}.weight": source.state[f"{name}.weight"] for name in layers}
    sparse = {name: by_rows(two_of_four, old.dtype, old) for name, old in weights.items()}
    masked = {**source.record.masked, **dict.fromkeys(layers, TWO_OF_FOUR)}
    zeros = share_of_zeros(tensor for _, tensor in walk(sparse.items()))
    note = f"{zeros:.1%} of the weights of {len(layers)} layers are zero; the file is no smaller for it"
    record = source.record.then({"how": TWO_OF_FOUR}, masked=masked)
    return _write(job.out, source, {**source.state, **sparse}, record, [note])


def remove_units(job: Structured) -> str:
    """Heads and channels leave, with all of their weights."""
    source = _open(job)
    groups = prunable(source.model)
    kept = _kept(job, groups, _scores(job, source, groups))
    smaller, counts = dict(source.state), dict(source.record.counts)
    for group in groups:
        if len(units := kept.get(group.name, range(group.count))) < group.count:
            counts[group.name] = len(units)
            for cut in group.cuts:
                smaller[cut.tensor] = take(smaller[cut.tensor], group, cut, units)
    step = {"how": "structured", "by": job.by, "scope": job.scope, **job.shares}
    left = [_left(kind, groups, kept) for kind, share in job.shares.items() if share]
    return _write(job.out, source, smaller, source.record.then(step, counts=counts), left)


def finetune(job: Finetune) -> str:
    """A pruned model trained on; zeros stay zeros."""
    from trainer.tiny.recover import Recovery, recover  # Lightning, which the other commands do without

    source = _open(job)
    folder = job.run or job.out.with_suffix(".run")
    settings = Recovery(folder, job.steps, job.learning_rate, job.cache, job.seed, job.workers, job.device)
    identity = "\n".join(f"{digest} {name}" for name, digest in sorted(source.record.sources.items()))
    try:
        recover(source.model, source.record.masked, identity, settings)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; the same command goes on from {folder}") from None
    state = source.model.state_dict()
    trained = {name: state[name].detach().cpu().to(old.dtype) for name, old in source.state.items()}
    step = {"how": "finetune", "steps": job.steps, "learning_rate": job.learning_rate, "seed": job.seed}
    return _write(job.out, source, trained, source.record.then(step))


def _open(job: TwoOfFour) -> DenseModel:
    """The model in float32. Raises ValueError for another suffix of `out`, and as `cldm.model.load_model`."""
    if job.out.suffix != SUFFIX:
        raise ValueError(f"{job.out}: pruned models are {SUFFIX} files, name it {job.out.stem}{SUFFIX}")
    weights = source_files(job.config, job.weights, job.out)
    model = load_model(job.config, *weights, dtype=torch.float32)
    files = [open_checkpoint(path) for path in weights]
    tensors = {name: tensor for file in files for name, tensor in file.weights().state.items()}
    state = {name: tensors[name] for name in model.state_dict() if name in tensors}
    known = [file.pruning for file in files if file.pruning]
    steps = tuple(step for record in known for step in record.steps)
    counts = {name: count for record in known for name, count in record.counts.items()}
    masked = {name: pattern for record in known for name, pattern in record.masked.items()}
    record = Record(job.config.name, steps, counts, masked, hash_files(weights))
    return DenseModel(model, weights, state, record)


def _write(path: Path, source: DenseModel, state: State, record: Record, notes: Iterable[str] = ()) -> str:
    write_weights(path, state, metadata={METADATA_KEY: record.to_json()})
    sizes = size_table(sizes_of(source.state.items()), sizes_of(state.items()))
    return "\n".join([sizes, *notes, str(path)])


def _kept(job: Structured, groups: Sequence[Group], scores: Mapping[str, Tensor]) -> Kept:
    """The units that stay; each part of the model and each kind of unit by itself."""
    kept: dict[str, list[int]] = {}
    for part in dict.fromkeys(group.name.split(".")[0] for group in groups):
        for kind, share in job.shares.items():
            own = [one for one in groups if one.kind == kind and one.name.split(".")[0] == part]
            kept |= keep_best(scores, own, share, job.scope)
    return kept


def _left(kind: str, groups: Sequence[Group], kept: Kept) -> str:
    own = [group for group in groups if group.kind == kind]
    stay, all_ = sum(len(kept[group.name]) for group in own), sum(group.count for group in own)
    return f"{kind}: {stay} of {all_} left in {len(own)} layers"


def _scores(job: Structured, source: DenseModel, groups: Sequence[Group]) -> dict[str, Tensor]:
    model, noise = source.model, torch.Generator().manual_seed(0)  # the same files from the same command
    scores = magnitude(model, groups)
    if job.by == "magnitude":
        return scores
    calls = _calls(job, source)
    model.model.diffusion_model.encoder_learns = True  # else no gradient passes its encoder
    with tqdm(total=sum(map(len, calls.values())), desc="importance", disable=None) as bar:
        for name, own_calls in calls.items():
            own = [group for group in groups if group.name.startswith(f"{name}.")]
            # What no call passes, such as a lite branch's work on the hint, goes by magnitude.
            scores |= taylor(model.get_submodule(name), model, own_calls, own, noise, bar.update)
    return scores


def _calls(job: Structured, source: DenseModel) -> dict[str, list[RecordedCall]]:
    """Calls of the networks, one for each picture and group of timesteps."""
    pipeline = Pipeline(source.model, defaults=read_config(job.config).get("defaults"))
    groups = TimestepGroups.even(source.model.num_timesteps, job.groups)  # a call is kept of each
    found: dict[str, list[RecordedCall]] = {name: [] for name in TIMED}
    for example in examples_in(job.calibrate, job.config):
        with record(source.model, list(TIMED)) as calls, follow_model(source.model, groups):
            Runs([example], control_of(source.weights), job.steps).play(pipeline)
        for name, some in calls.items():
            found[name] += some
    return found


PRUNERS: dict[str, Callable[[Any], str]] = {
    "strip": strip,
    "2:4": zero_two_of_four,
    "structured": remove_units,
    "finetune": finetune,
}
