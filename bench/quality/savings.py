"""What saving steps costs in pictures, on the tiny model, and what it saves in seconds, at any size.

    python -m bench.quality.savings
    python -m bench.quality.savings_parts --results outputs/parts.jsonl
    python -m bench.quality.savings --parts outputs/parts.jsonl

Every row makes the same pictures from the same noise (`eval.fill50k`, held-out scenes) and is held against
those of DDIM's 20 and 50 steps, and against the truth; pictures that are finished stay. With --parts, the
passes of the U-Net and the branch are counted instead, and the table says how many seconds a picture of that
many passes takes by the measured seconds of each part: a sum, not a measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.harness import Bench, Column, chosen, table_of
from bench.quality.held_out import COLOURS, FOLLOWED, ROWS, HeldOutFlags
from bench.results import Measurement, Rows, read_rows
from common.flags import flag
from ldm.modules.feature_cache import DEFAULT_CACHE_POINT

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM
    from cldm.pipeline import Pipeline

WHOLE, BETWEEN, BRANCH = "whole", "between", "branch"  # passes of the U-Net, and of the branch
PEER = "diffusers step"
UNSAVED, LONG = "ddim 20", "ddim 50"  # what the others are held against
SAVING_ROWS: dict[str, dict[str, Any]] = ROWS["savings"]  # fields of the request, by row
SMALLEST = 64  # pixels a side: one position at the deepest resolution
PASSES = (WHOLE, BETWEEN, BRANCH)
ONCE = ("text", "hint", "decode")  # parts that a picture needs once
COLUMNS = (
    Column(f"PSNR to {UNSAVED}", "PSNR to unsaved", "{:.1f} dB"),
    Column("its 5 %", "PSNR to unsaved, low", "{:.1f} dB"),
    Column(f"SSIM to {UNSAVED}", "SSIM to unsaved", "{:.4f}"),
    Column(f"PSNR to {LONG}", "PSNR to long", "{:.1f} dB"),
    Column("PSNR to truth", "PSNR to truth", "{:.1f} dB"),
    FOLLOWED,
    COLOURS,
)


@dataclass(frozen=True)
class SavingsFlags(HeldOutFlags):
    """The command line."""

    only: tuple[str, ...] = flag((), "rows (default: all)", "--only", "--rows", metavar="NAME")
    run: Path = flag(Path("runs/savings"), "of what is made", metavar="DIR")
    parts: tuple[Path, ...] = flag((), "of bench.quality.savings_parts: seconds, no quality", metavar="FILE")


def measure(flags: SavingsFlags) -> Iterator[Measurement]:
    """Quality by row, or passes and seconds."""
    names = chosen(flags.only, SAVING_ROWS, "row")
    return _seconds(flags, names) if flags.parts else _quality(flags, names)


def _quality(flags: SavingsFlags, names: list[str]) -> Iterator[Measurement]:
    """The two rows that others are held against are made in any case."""
    from cldm.pipeline import Pipeline

    pipeline = Pipeline.from_files(flags.config)
    made = {}
    for name in dict.fromkeys([UNSAVED, LONG, *names]):
        made[name], _ = flags.pictures("saving", lambda: pipeline, SAVING_ROWS[name])
        if name in names:
            others = {"unsaved": UNSAVED, "long": LONG}
            to = {label: made[other] for label, other in others.items() if other in made and other != name}
            yield from flags.scores(name, made[name], **to)


def _seconds(flags: SavingsFlags, names: list[str]) -> Iterator[Measurement]:
    """Held against diffusers' picture of DDIM's 50 steps if its step was measured, else against ours."""
    from cldm.pipeline import Pipeline

    reports, base = {path.stem: read_rows(path) for path in flags.parts}, None
    pipeline = Pipeline.from_files(flags.config)
    for report, parts in reports.items():
        if PEER in parts and base is None:  # what its picture needs once is what ours needs
            base = SAVING_ROWS[LONG]["steps"] * parts[PEER]["wall"].value + _once(parts)
            yield from _took(f"diffusers, {LONG}", report, base, base)
    for name in dict.fromkeys([LONG, *names]):
        passes = passes_of(pipeline, SAVING_ROWS[name])
        for kind in PASSES:
            yield Measurement(name, kind, passes[kind], "passes")
        cut = SAVING_ROWS[name].get("reuse_cut", DEFAULT_CACHE_POINT)
        for report, parts in reports.items():
            seconds = seconds_of(passes, cut, parts)
            base = base or seconds
            yield from _took(name, report, seconds, base)


def _took(name: str, report: str, seconds: float, base: float) -> Iterator[Measurement]:
    yield Measurement(name, f"{report}, s", seconds, "s")
    yield Measurement(name, f"{report}, faster", base / seconds, "times")


def seconds_of(passes: Mapping[str, float], cut: str, parts: Rows) -> float:
    """Seconds of a picture with these passes: the sum of the measured `parts`."""
    kinds = {WHOLE: WHOLE, BRANCH: BRANCH, BETWEEN: cut}
    return sum(passes[kind] * parts[part]["wall"].value for kind, part in kinds.items()) + _once(parts)


def _once(parts: Rows) -> float:
    return sum(parts[name]["wall"].value for name in ONCE)


def passes_of(pipeline: Pipeline, fields: Mapping[str, Any]) -> Counter[str]:
    """Passes of one picture by kind, counted while a small one is made: any model makes as many.

    Control is in both passes of a step, as in published models; the tiny model's own guidance differs.
    """
    import torch

    hint = torch.zeros(1, 3, SMALLEST, SMALLEST)  # its content changes no count
    with passes_counted(pipeline.model) as passes:
        pipeline.generate(["-"], hint, seed=0, guided_control=False, **fields)
    return passes


@contextmanager
def passes_counted(model: ControlLDM) -> Iterator[Counter[str]]:
    """Passes inside by kind: of the whole U-Net, of the part that steps between compute, of the branch.

    Each row of a call is a pass: guidance may make both of a step in one call.
    """
    passes, unet = Counter(dict.fromkeys(PASSES, 0)), model.model.diffusion_model

    def count(name: str, sign: int = 1) -> Any:
        # The second argument, timesteps or their embedding, has all rows where those of the first are shared.
        return lambda _, inputs: passes.update({name: sign * len(inputs[1])})

    handles = [
        unet.register_forward_pre_hook(count(BETWEEN)),
        unet.middle_block.register_forward_pre_hook(count(WHOLE)),
        unet.middle_block.register_forward_pre_hook(count(BETWEEN, -1)),
        model.control_model.register_forward_pre_hook(count(BRANCH)),
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def table(rows: Rows, flags: SavingsFlags) -> str:
    """One line a row: quality, or passes and seconds by each report's parts."""
    if not flags.parts:
        return table_of(COLUMNS, "row")(rows)
    columns = [Column(kind, kind, "{:.0f}") for kind in PASSES]
    for report in (path.stem for path in flags.parts):
        columns += [Column(f"{report}, s", f"{report}, s", "{:.1f}")]
        columns += [Column("faster", f"{report}, faster", "{:.2f} x")]
    return f"Passes a picture, and seconds by measured parts\n\n{table_of(columns, 'row')(rows)}"


ABOUT = f"{__doc__}Rows: {'; '.join(SAVING_ROWS)}.\n"
main = Bench("bench.quality.savings", ABOUT, SavingsFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
