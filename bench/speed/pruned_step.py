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

from bench.harness import MIB, ROUNDS, SPREAD, Bench, Column, StepFlags, chosen, table_of
from bench.inputs import Inputs, denoising_step
from bench.processes import interleaved
from bench.random_weights import gaussian
from bench.results import Measurement
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
COLUMNS = (
    Column("U-Net + branch, million", "weights", "{:.1f}", 1e6),
    Column("fp32, MiB", "weights", "{:.0f}", MIB / FLOAT),
    Column("of whole", "weights", "{:.1%}", ratio="of first"),
    Column("step, s (range)", "wall", SPREAD),
    Column("CPU-s", "cpu", "{:.1f}"),
    Column("faster", "wall", ratio="faster"),
)


@dataclass(frozen=True)
class PrunedStepFlags(StepFlags):
    """The command line."""

    LOWEST: ClassVar[Mapping[str, int]] = {"rounds": 0}

    only: tuple[str, ...] = flag((), "levels to time (default: all)", "--only", "--time", metavar="NAME")
    rounds: int = flag(3, f"{ROUNDS}, 0 for none")


def shrunk(config: Path, level: str) -> ControlLDM:
    """U-Net and branch of a level, shapes only."""
    from cldm.compressed.pruned import prunable
    from ldm.config import create_meta_model
    from quantize.prune.units import shrink_

    model = create_meta_model(config)
    del model.first_stage_model, model.cond_stage_model  # pruning leaves them alone
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
    shapes = {name: value.shape for name, value in model.named_parameters()}
    cut = {name: state[name][tuple(map(slice, shape))].contiguous() for name, shape in shapes.items()}
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
    state, steps = random_weights(models[WHOLE]), {}  # drawn once: levels cut from it
    for name in dict.fromkeys([WHOLE, *asked]):
        model = with_memory(models[name], state).to(device)
        inputs = Inputs.random(model, flags.size, flags.batch).to(device, torch.float32)
        steps[name] = denoising_step(model, inputs)
    for name, taken in interleaved(steps, flags.rounds, device.type).items():
        yield Measurement.of(name, "wall", "s", [cost.wall for cost in taken])
        yield Measurement.of(name, "cpu", "s", [cost.cpu for cost in taken])


ABOUT = __doc__.format(levels="; ".join(LEVELS))
table = table_of(COLUMNS, "units gone")
main = Bench("bench.speed.pruned_step", ABOUT, PrunedStepFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
