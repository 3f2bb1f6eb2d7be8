"""What pruned heads and channels save at the size of Stable Diffusion 1.5: weights, and time of a step.

    python -m bench.speed.pruned_step --rounds 0                    # sizes alone, in seconds
    python -m bench.speed.pruned_step --time "mlp, heads 50 %" "all 25 %"

Weights are random: time does not depend on them, nor on which units go. A step is one call of the branch,
whose hint is encoded beforehand, and of the U-Net. Every round takes a step of each level, one after the
other, so that whatever else the machine does meets all of them; the first round is not counted. Levels share
what pruning does not cut. The levels are {levels}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bench.harness import MIB, ROUNDS, SD15, Bench, BenchFlags, chosen, markdown
from bench.inputs import Inputs, denoising_step
from bench.processes import interleaved
from bench.random_weights import gaussian
from bench.results import Measurement, Rows
from common.flags import flag

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

WHOLE = "whole"
# Level -> share of the units of each kind that go (`cldm.compressed.pruned`).
LEVELS: Mapping[str, Mapping[str, float]] = {
    WHOLE: {},
    "mlp, heads 12.5 %": {"mlp": 0.125, "heads": 0.125},
    "mlp, heads 25 %": {"mlp": 0.25, "heads": 0.25},
    "mlp, heads 50 %": {"mlp": 0.5, "heads": 0.5},
    "all 25 %": {"mlp": 0.25, "heads": 0.25, "res": 0.25},
    "all 50 %": {"mlp": 0.5, "heads": 0.5, "res": 0.5},
}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class PrunedStepFlags(BenchFlags):
    """The command line."""

    LOWEST: ClassVar[Mapping[str, int]] = {"rounds": 0}
    SHARED: ClassVar[Sequence[str]] = ("config", "size", "batch")

    config: Path = flag(SD15, "yaml of the model")
    only: tuple[str, ...] = flag((), "levels to time (default: all)", "--only", "--time", metavar="NAME")
    size: int = flag(512, "side of the picture, pixels", "--resolution")
    batch: int = flag(1, "pictures a step")
    rounds: int = flag(3, f"{ROUNDS}, 0 for none")
    device: str = flag("cpu", "auto, cpu, cuda, cuda:N")


def shrunk(config: Path, level: str) -> ControlLDM:
    """U-Net and branch of a level, shapes only."""
    from cldm.compressed.pruned import prunable
    from ldm.config import create_meta_model
    from quantize.prune.units import shrink_

    model = create_meta_model(config)
    del model.first_stage_model, model.cond_stage_model
    groups = prunable(model)
    shrink_(model, groups, _units_that_stay(groups, LEVELS[level]))
    return model.eval().requires_grad_(False)


def _units_that_stay(groups: Sequence[Any], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Of units that are of equal importance, as many as `quantize.prune` would leave."""
    from quantize.prune.importance import keep_best

    kept: dict[str, list[int]] = {}
    for kind, share in shares.items():
        own = [group for group in groups if group.kind == kind]
        kept |= keep_best({group.name: torch.ones(group.count) for group in own}, own, share)
    return kept


def random_weights(model: ControlLDM) -> dict[str, Tensor]:
    """Numbers for each parameter, which the levels share."""
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
    return {name: gaussian(name, layer) for name, layer in layers.items()}


def with_memory(model: ControlLDM, state: Mapping[str, Tensor]) -> ControlLDM:
    """`model` with the first units of `state`, which the uncut tensors share."""
    cut = {}
    for name, value in model.named_parameters():
        given = state[name]
        for axis, size in enumerate(value.shape):
            given = given if given.shape[axis] == size else given.narrow(axis, 0, size).contiguous()
        cut[name] = given
    model.load_state_dict(cut, strict=False, assign=True)
    return model


def measure(flags: PrunedStepFlags) -> Iterator[Measurement]:
    """Weights of each level, and seconds of those that are to be timed beside the whole."""
    from ldm.util import pick_device

    asked, device = chosen(flags.only, LEVELS, "level"), pick_device(flags.device)
    models = {name: shrunk(flags.config, name) for name in LEVELS}
    for name, model in models.items():
        yield Measurement(name, "weights", sum(value.numel() for value in model.parameters()), "numbers")
    if not flags.rounds:
        return
    state, steps = random_weights(models[WHOLE]), {}
    for name in dict.fromkeys([WHOLE, *asked]):
        model = with_memory(models[name], state).to(device)
        inputs = Inputs.random(model, flags.size, flags.batch).to(device, torch.float32)
        steps[name] = denoising_step(model, inputs)
    for name, taken in interleaved(steps, flags.rounds, device.type).items():
        yield Measurement.of(name, "wall", "s", [cost.wall for cost in taken])
        yield Measurement.of(name, "cpu", "s", [cost.cpu for cost in taken])


def table(rows: Rows, _: PrunedStepFlags) -> str:
    """One line a level."""
    head = ["units gone", "U-Net + branch, million", "fp32, MiB", "of whole"]
    head += ["step, s (range)", "CPU-s", "faster"]
    cells, whole = [], rows[WHOLE]
    for name, row in rows.items():
        weights = row["weights"].value
        share = f"{weights / whole['weights'].value:.1%}"
        times = ["-"] * 3
        if "wall" in row:
            faster = f"{whole['wall'].value / row['wall'].value:.2f} x"
            times = [row["wall"].spread(), f"{row['cpu'].value:.1f}", faster]
        cells.append([name, f"{weights / 1e6:.1f}", f"{FLOAT * weights / MIB:.0f}", share, *times])
    return markdown(head, cells)


ABOUT = __doc__.format(levels="; ".join(LEVELS))
main = Bench("bench.speed.pruned_step", ABOUT, PrunedStepFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
