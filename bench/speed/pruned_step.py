"""What pruned heads and channels save at the size of Stable Diffusion 1.5: weights, and time of a step.

    python -m bench.speed.pruned_step --rounds 0                    # sizes alone, in seconds
    python -m bench.speed.pruned_step --time "mlp, heads 50 %" "all 25 %"

Weights are random: time does not depend on them, nor on which units go. A step is one call of the branch,
whose hint is encoded beforehand, and of the U-Net. Every round takes a step of each level, one after the
other, so that whatever else the machine does meets all of them; the first round is not counted. Levels share
what pruning does not cut.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cldm.cldm import ControlLDM

ROOT = Path(__file__).parents[2]
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
MIB = 2**20
LATENT_FACTOR = 8
TOKENS = 77
TIMESTEP = 500


@dataclass(frozen=True)
class Row:
    """params: of U-Net and branch; seconds: of each counted step, cpu: the same of all threads together."""

    params: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def shrunk(config: Path, level: str) -> "ControlLDM":
    """U-Net and branch of a level, shapes only."""
    from cldm.compressed.pruned import prunable
    from ldm.config import create_meta_model
    from quantize.prune.units import shrink_

    model = create_meta_model(config)
    del model.first_stage_model, model.cond_stage_model
    groups = prunable(model)
    shrink_(model, groups, kept_of(groups, LEVELS[level]))
    return model.eval().requires_grad_(False)


def kept_of(groups: Sequence[Any], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Units of equal importance: so many stay as `quantize.prune` would leave."""
    import torch

    from quantize.prune.importance import keep_best

    kept: dict[str, list[int]] = {}
    for kind, share in shares.items():
        own = [group for group in groups if group.kind == kind]
        kept |= keep_best({group.name: torch.ones(group.count) for group in own}, own, share)
    return kept


def random_weights(model: "ControlLDM") -> "dict[str, Tensor]":
    """A number for each parameter, of a size that keeps that of activations about."""
    import torch

    noise, state = torch.Generator().manual_seed(0), {}
    for name, value in model.named_parameters():
        drawn = torch.empty(value.shape)
        state[name] = (
            drawn.normal_(0, value[0].numel() ** -0.5, generator=noise)
            if value.ndim > 1
            else drawn.fill_(0.1)
        )
    return state


def with_memory(model: "ControlLDM", state: "Mapping[str, Tensor]") -> "ControlLDM":
    """`model` with the first units of `state`, which the uncut tensors share."""
    cut = {}
    for name, value in model.named_parameters():
        given = state[name]
        for axis, size in enumerate(value.shape):
            given = given if given.shape[axis] == size else given.narrow(axis, 0, size).contiguous()
        cut[name] = given
    model.load_state_dict(cut, strict=False, assign=True)
    return model


def stepper(model: "ControlLDM", resolution: int, batch: int, device: "torch.device") -> Callable[[], None]:
    """A step of `model`, on `device`."""
    import torch

    model.to(device)
    unet, branch = model.model.diffusion_model, model.control_model
    side = resolution // LATENT_FACTOR
    x = torch.randn(batch, unet.config.in_channels, side, side, device=device)
    text = torch.randn(batch, TOKENS, unet.config.context_dim, device=device)
    t = torch.full((batch,), TIMESTEP, device=device)
    with torch.inference_mode():
        hint = branch.encode_hint(torch.rand(batch, 3, resolution, resolution, device=device))

    def step() -> None:
        with torch.inference_mode():
            answer = unet(x, t, text, control=branch(x, hint, t, text, encoded=True))
            assert answer.isfinite().all()  # also waits for a card to finish

    return step


def measure(args: argparse.Namespace) -> dict[str, Row]:
    """A row for each level; those of --time with seconds."""
    from tqdm import tqdm

    from ldm.util import pick_device

    device = pick_device(args.device)
    models = {name: shrunk(args.config, name) for name in LEVELS}
    rows = {name: Row(sum(p.numel() for p in model.parameters())) for name, model in models.items()}
    timed = [WHOLE, *(name for name in args.time if name != WHOLE)] if args.rounds else []
    state = random_weights(models[WHOLE]) if timed else {}
    steps = {
        name: stepper(with_memory(models[name], state), args.resolution, args.batch, device) for name in timed
    }
    for count in tqdm(range(args.rounds + 1 if timed else 0), desc="rounds", disable=None):
        for name, step in steps.items():
            start, busy = time.perf_counter(), time.process_time()
            step()
            if count:
                rows[name].seconds.append(time.perf_counter() - start)
                rows[name].cpu.append(time.process_time() - busy)
    return rows


def table(rows: Mapping[str, Row]) -> str:
    """Markdown, one line a level."""
    whole = rows[WHOLE]
    lines = [
        "| units gone | U-Net + branch, million | fp32, MiB | of whole | step, s (range) | CPU-s | faster |",
        "|---" * 7 + "|",
    ]
    for name, row in rows.items():
        cells = [
            name,
            f"{row.params / 1e6:.1f}",
            f"{4 * row.params / MIB:.0f}",
            f"{row.params / whole.params:.1%}",
        ]
        if row.seconds:
            median = statistics.median(row.seconds)
            cells += [f"{median:.2f} ({min(row.seconds):.2f}..{max(row.seconds):.2f})"]
            cells += [
                f"{statistics.median(row.cpu):.1f}",
                f"{statistics.median(whole.seconds) / median:.2f} x",
            ]
        else:
            cells += ["-"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed.pruned_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    names = "; ".join(LEVELS).replace("%", "%%")
    add("--time", nargs="+", default=list(LEVELS), metavar="NAME", help=f"levels to time, of {names}")
    add("--resolution", type=int, default=512, help="side of the picture, pixels (default: %(default)s)")
    add("--batch", type=int, default=1, help="pictures a step (default: %(default)s)")
    add("--rounds", type=int, default=3, help="counted steps a level, 0 for none (default: %(default)s)")
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:N (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 with a sentence about what is wrong."""
    args = parse_args(argv)
    try:
        if unknown := [name for name in args.time if name not in LEVELS]:
            raise ValueError(f"unknown level {unknown[0]!r}: use some of {'; '.join(LEVELS)}")
        if min(args.batch, args.resolution) < 1 or args.resolution % 64 or args.rounds < 0:
            raise ValueError(
                f"{args.rounds} rounds of {args.batch} at {args.resolution} pixels: give 1 picture or more, "
                "and pixels in steps of 64"
            )
        rows = measure(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    import torch

    print(
        f"{args.config.name}, batch {args.batch}, {args.resolution} pixels, {args.device}, "
        f"{torch.get_num_threads()} threads, medians of {args.rounds}"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
