"""Smaller models by pruning: what training left behind, small weights, whole heads and channels.

    python -m quantize.prune strip v1-5-pruned.ckpt --out v1-5.safetensors --half
    python -m quantize.prune structured models/tiny.yaml --mlp 0.25 --res 0.25 --out small.safetensors
    python -m quantize.prune finetune models/tiny.yaml --weights small.safetensors --steps 300 \\
        --out new.safetensors
    python -m quantize.prune magnitude models/tiny.yaml --share 0.5 --out zeros.safetensors
    python -m quantize.prune 2:4 models/tiny.yaml --out sparse.safetensors
    python generate.py --weights new.safetensors --image test_imgs/circle.png --prompt "cyan circle"

A pruned file loads wherever weights do, quantization included. Only `strip` and `structured` make files
smaller and models faster everywhere: zeros take as much room as other numbers, and as long to multiply. Exit
codes: 0; 2 with one sentence about what is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.shell import INTERRUPTED, run_command
from tools.compress.prune_flags import parse_args

if TYPE_CHECKING:
    from torch import Tensor

    from cldm.cldm import ControlLDM
    from quantize.calibration.report import Call
    from quantize.prune.record import Record
    from quantize.prune.units import Group

KINDS = ("heads", "mlp", "res")  # of units, each with a share of its own
TAYLOR_NETWORKS = ("control_model", "model.diffusion_model")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv, __doc__)
    return run_command(lambda: COMMANDS[args.command](args))


def _strip(args: argparse.Namespace) -> str:
    from common.atomic import MIB
    from tools.convert import conversions as convert

    before = args.input.stat().st_size if args.input.is_file() else 0
    dtype = "fp16" if args.half else None
    from tools.convert.target import open_target

    with open_target(args.out, force=args.force, dtype=dtype) as target:
        result = convert.strip(args.input, target, use_ema=args.use_ema)
    return f"{result}\n{before / MIB:.1f} MiB before, {args.out.stat().st_size / MIB:.1f} MiB after"


def _magnitude(args: argparse.Namespace) -> str:
    from quantize.prune.masks import borders
    from tools.compress.pruned_files import with_zeros

    model, weights = _open(args)
    layers = _selected(model)
    limits = borders({name: model.get_submodule(name).weight for name in layers}, args.share, args.scope)
    step = {"how": "magnitude", "share": args.share, "scope": args.scope}
    return _write_masked(args, model, weights, with_zeros, limits, step)


def _two_of_four(args: argparse.Namespace) -> str:
    from quantize.prune.masks import why_not_two_of_four
    from tools.compress.pruned_files import with_two_of_four

    model, weights = _open(args)
    layers = {
        name: None for name in _selected(model) if not why_not_two_of_four(model.get_submodule(name).weight)
    }
    return _write_masked(args, model, weights, with_two_of_four, layers, {"how": "2:4"})


def _write_masked(
    args: argparse.Namespace, model: Any, weights: Any, change: Any, layers: Any, step: Any
) -> str:
    from checkpoints.files.lazy import walk
    from quantize.prune.masks import share_of_zeros
    from tools.compress.pruned_files import begin_record, merged, sizes, write_pruned

    state = merged(model, weights)
    changed = change(state, layers)
    record = begin_record(args.config, weights)
    record = record.then(step, masked={**record.masked, **dict.fromkeys(layers, step["how"])})
    write_pruned(args.out, changed, record)
    zeros = share_of_zeros(tensor for _, tensor in walk((n, changed[f"{n}.weight"]) for n in layers))
    note = f"{zeros:.1%} of the weights of {len(layers)} layers are zero; the file is no smaller for it"
    return f"{sizes(state, changed)}\n{note}\n{args.out}"


def _structured(args: argparse.Namespace) -> str:
    from cldm.compressed.pruned import prunable
    from tools.compress.pruned_files import begin_record, merged, sizes, without_units, write_pruned

    if not any(getattr(args, kind) for kind in KINDS):
        raise ValueError("nothing would go: give --heads, --mlp or --res a share, such as 0.25")
    if args.by == "taylor" and not args.calibrate:
        raise ValueError("--by taylor looks at runs of the model: give --calibrate DIR with pictures")
    if args.scope == "global" and args.by == "magnitude":
        raise ValueError("--scope global compares layers by what they do to the answer: add --by taylor")
    model, weights = _open(args)
    groups = prunable(model)
    kept = _kept(args, groups, _scores(args, model, weights, groups))
    state = merged(model, weights)
    smaller = without_units(state, groups, kept)
    step = {"how": "structured", "by": args.by, "scope": args.scope}
    step |= {kind: getattr(args, kind) for kind in KINDS}
    record = begin_record(args.config, weights)
    counts = {g.name: len(kept[g.name]) for g in groups if len(kept.get(g.name, range(g.count))) < g.count}
    record = record.then(step, counts={**record.counts, **counts})
    write_pruned(args.out, smaller, record)
    left = "\n".join(_left(kind, groups, kept) for kind in KINDS if getattr(args, kind))
    return f"{sizes(state, smaller)}\n{left}\n{args.out}"


def _kept(
    args: argparse.Namespace, groups: Sequence[Group], scores: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """The units that stay; each part of the model and each kind of unit by itself."""
    from quantize.prune.importance import keep_best

    kept: dict[str, list[int]] = {}
    for part in dict.fromkeys(group.name.split(".")[0] for group in groups):
        for kind in KINDS:
            own = [one for one in groups if one.kind == kind and one.name.split(".")[0] == part]
            kept |= keep_best(scores, own, getattr(args, kind), args.scope)
    return kept


def _left(kind: str, groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> str:
    own = [group for group in groups if group.kind == kind]
    stay, all_ = sum(len(kept[group.name]) for group in own), sum(group.count for group in own)
    return f"{kind}: {stay} of {all_} left in {len(own)} layers"


def _scores(
    args: argparse.Namespace, model: ControlLDM, weights: Sequence[Path], groups: Sequence[Group]
) -> dict[str, Tensor]:
    import torch
    from tqdm import tqdm

    from quantize.prune.importance import magnitude, taylor

    scores = magnitude(model, groups)
    if args.by == "magnitude":
        return scores
    unet, noise = model.model.diffusion_model, torch.Generator().manual_seed(0)
    calls = _calls(args, model, weights)
    unet.encoder_learns = True
    with tqdm(total=sum(map(len, calls.values())), desc="importance", disable=None) as bar:
        for name in TAYLOR_NETWORKS:
            own = [group for group in groups if group.name.startswith(f"{name}.")]
            network = model.get_submodule(name)
            # What no call passes, such as a lite branch's work on the hint, goes by magnitude.
            scores |= taylor(network, model, calls[name], own, noise, bar.update)
    return scores


def _calls(args: argparse.Namespace, model: ControlLDM, weights: Sequence[Path]) -> dict[str, list[Call]]:
    """Calls of the networks, one for each picture and group of timesteps."""
    from cldm.pipeline import Pipeline
    from ldm.config import read_config
    from quantize.calibration.report import record
    from quantize.timesteps import TimestepGroups
    from tools.compress.calibration import Runs, control_of, examples_in, followed

    pipeline = Pipeline(model, defaults=read_config(args.config).get("defaults"))
    groups = TimestepGroups.even(model.num_timesteps, args.groups)
    found: dict[str, list[Call]] = {name: [] for name in TAYLOR_NETWORKS}
    for example in examples_in(args.calibrate, args.config):
        with record(model, TAYLOR_NETWORKS) as calls, followed(model, groups):
            Runs([example], control_of(weights), args.steps).play(pipeline)
        for name, some in calls.items():
            found[name] += some
    return found


def _finetune(args: argparse.Namespace) -> str:
    from tools.compress.pruned_files import begin_record, merged, sizes, write_pruned
    from trainer.tiny.recover import Recovery, recover

    model, weights = _open(args)
    record = begin_record(args.config, weights)
    folder = args.run or args.out.with_suffix(".run")
    settings = Recovery(
        folder, args.steps, args.learning_rate, args.cache, args.seed, args.workers, args.device
    )
    state = merged(model, weights)
    try:
        recover(model, record.masked, _identity(record), settings)
    except FloatingPointError as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the same command goes on from {folder}\n")
        raise SystemExit(INTERRUPTED) from None
    trained = {name: model.state_dict()[name].detach().cpu().to(state[name].dtype) for name in state}
    step = {"how": "finetune", "steps": args.steps, "learning_rate": args.learning_rate, "seed": args.seed}
    write_pruned(args.out, trained, record.then(step))
    return f"{sizes(state, trained)}\n{args.out}"


def _identity(record: Record) -> str:
    return "\n".join(f"{digest} {name}" for name, digest in sorted(record.sources.items()))


def _open(args: argparse.Namespace) -> tuple[ControlLDM, list[Path]]:
    """The model in float32 and the files of its weights. Raises as `cldm.model.load_model`."""
    import torch

    from cldm.model import load_model
    from ldm.config import read_config
    from quantize.files.read import refuse_quantized_file

    weights = args.weights or [
        args.config.parent / name for name in read_config(args.config).get("weights", [])
    ]
    for path in weights:
        refuse_quantized_file(path)
        if path.resolve() == args.out.resolve():
            raise ValueError(f"--out {args.out} is the file that goes in: choose another name")
    return load_model(args.config, *weights, dtype=torch.float32), weights


def _selected(model: ControlLDM) -> list[str]:
    """Layers that zeros may be in: what quantization selects by default, tables of words aside."""
    from torch import nn

    from quantize.selection import default_selection, make_plan

    names = make_plan(model, default_selection("int8_weight")).layers
    return [name for name in names if not isinstance(model.get_submodule(name), nn.Embedding)]


COMMANDS = {
    "strip": _strip,
    "magnitude": _magnitude,
    "2:4": _two_of_four,
    "structured": _structured,
    "finetune": _finetune,
}

if __name__ == "__main__":
    raise SystemExit(main())
