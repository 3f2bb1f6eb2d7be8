"""Compares models on the same inputs, prompts and noise: scores, differences, time, memory, pictures.

    python -m eval compare full=models/tiny.yaml lite=models/tiny_lite.yaml --data held-out --count 40
    python -m eval compare old=models/cldm_v15.yaml:control_sd15_canny.pth \\
        new=models/control_v11p_sd15_canny.yaml:v1-5-pruned.ckpt:control_v11p_sd15_canny.pth --data photos

Pictures are made as by `python -m eval generate`. Each model is scored by itself and held against the first
on the same pictures, so that their difference has a paired interval; where that holds 0 there is no
measurable difference. Beside the truth, `to NAME` says how like a model's pictures are to the first one's.
Seconds and memory come from one interleaved run (--rounds). DIR gets table.md, grid.png (input, map, each
model, and four times its difference from the first) and worst-METRIC.png, the five worst pictures of each
metric: they tell more than a mean.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.forms.costs import COST_COLUMNS, Workload, costs
from bench.forms.form import Form, parse_forms
from bench.harness import Column, cells_of, markdown, shown
from bench.origin import model_files, origin_of
from bench.results import Measurement, ResultsFile, by_subject
from common.atomic import atomic_write
from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command, say
from eval.comparison_grids import write_grid, write_worst
from eval.folders import Folders, read_pictures
from eval.generate import SIZE, STOPPED, Plan, add_generation_flags, make, read_plan
from eval.intervals import Interval, difference_in_words, wilson
from eval.materials import HELD_OUT, MAPS, TRUTH
from eval.metrics.metric import PictureMetric, Score
from eval.metrics.registry import METRICS, check_names
from eval.pictures import Pictures
from eval.scoring import Scorer, ScoreSettings, applicable

SAME_SEED = ("psnr", "ssim", "lpips")  # that also compare a model with the first one
BETWEEN = " - "  # in the subject of a difference


@dataclass(frozen=True)
class CompareFlags:
    """What is computed, beside the pictures."""

    metrics: tuple[str, ...] = flag((), "names (default: all that can be)", metavar="NAME")
    metric_weights: Path = flag(
        ScoreSettings.metric_weights, "folder of the metrics' networks", metavar="DIR"
    )
    allow_small: bool = flag(False, "print biased numbers of too few pictures")
    rounds: int = flag(3, "timed pictures of each model, 0 for no time and memory")
    threads: int | None = flag(None, "of the timed models (default: as many as torch takes)")
    results: Path | None = flag(None, "for the rows, JSON lines", metavar="FILE")


@dataclass(frozen=True)
class Side:
    """A model with its pictures on disk, paired with maps and truths where there are any."""

    form: Form
    pictures: Pictures


def quality(plan: Plan, forms: Sequence[Form], flags: CompareFlags) -> Iterator[Measurement]:
    """Make what is missing, then the scores of each model and the differences from the first."""
    out, scorer = plan.data.out, Scorer(_score_settings(flags))
    sides = []
    for form in forms:
        make(plan, form)
        folders = Folders(out / form.name, _there(out / TRUTH), _there(out / MAPS))
        sides.append(Side(form, read_pictures(folders)))
    names = _measurable(list(flags.metrics) or applicable(sides[0].pictures), sides[0].pictures, scorer)
    for side in sides:
        yield from _scores(side, names, scorer)
        yield from _followed(plan, side)
        if side is not sides[0]:
            yield from _against(out, sides[0], side, names, scorer)
    write_grid(plan, [side.form.name for side in sides])
    for name in names:
        if isinstance(METRICS[name], PictureMetric):
            values = {side.form.name: scorer.values(side.pictures, name) for side in sides}
            write_worst(plan, name, METRICS[name].better, values)


def _measurable(names: Sequence[str], pictures: Pictures, scorer: Scorer) -> list[str]:
    """Those of which these pictures have a number; why there is none of the others is said once."""
    kept = []
    for name in names:
        if why := scorer.why_not(pictures, name):
            say(f"{METRICS[name].title} is left out: {why}")
        elif scorer.scores(pictures, [name])[0].value is not None:
            kept.append(name)
    return kept


def _scores(side: Side, names: Sequence[str], scorer: Scorer) -> Iterator[Measurement]:
    for score in scorer.scores(side.pictures, names):
        if score.value is not None:
            yield _measurement(side.form.name, score.metric, score)


def _against(
    out: Path, first: Side, side: Side, names: Sequence[str], scorer: Scorer
) -> Iterator[Measurement]:
    """How like its pictures are to the first one's, and by how much its scores differ."""
    same = read_pictures(Folders(out / side.form.name, out / first.form.name))
    for score in scorer.scores(same, [name for name in SAME_SEED if not scorer.why_not(same, name)]):
        quantity = f"{METRICS[score.metric].title} to {first.form.name}"
        yield _measurement(side.form.name, quantity, score)
    for name in names:
        score = scorer.difference(side.pictures, first.pictures, name)
        if score.value is not None:
            yield _measurement(f"{side.form.name}{BETWEEN}{first.form.name}", name, score)


def _followed(plan: Plan, side: Side) -> Iterator[Measurement]:
    """Of held-out scenes, whose outlines and colours are known: which share is right."""
    if plan.data.data != HELD_OUT:
        return
    from eval.fill50k import held_out_scenes, score
    from ldm.image import read_image

    images = [read_image(case.image.path) for case in side.pictures.cases]
    scores = score(images, held_out_scenes(len(images), plan.seed))
    for quantity, right in {"followed": scores.followed, "colours": scores.coloured}.items():
        interval = wilson(int(right.sum()), len(right))
        low, high = interval.low, interval.high
        yield Measurement(side.form.name, quantity, float(right.mean()), "share", len(right), low, high)


def _measurement(subject: str, quantity: str, score: Score) -> Measurement:
    return Measurement(subject, quantity, score.value, score.unit, score.n, score.low, score.high)


def _there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _score_settings(flags: CompareFlags) -> ScoreSettings:
    return ScoreSettings(metric_weights=flags.metric_weights, allow_small=flags.allow_small)


def report(found: Iterable[Measurement], plan: Plan) -> str:
    """Two tables: each model, then each difference in words."""
    rows = by_subject(found)
    models = {name: row for name, row in rows.items() if BETWEEN not in name}
    quantities = list(dict.fromkeys(name for row in models.values() for name in row))
    costed = {column.quantity for column in COST_COLUMNS}
    heads = {name: METRICS[name].title if name in METRICS else name for name in quantities}
    columns = [Column(heads[name], name, shown) for name in quantities if name not in costed]
    columns += [column for column in COST_COLUMNS if column.quantity in quantities]
    head, *lines = cells_of(models, columns, "model")
    parts = [f"{len(plan.things)} pictures of {plan.data.data}, 95 % intervals", markdown(head, lines)]
    if differences := [_words(name, row) for name, row in rows.items() if BETWEEN in name]:
        parts.append("\n".join(differences))
    return "\n\n".join(parts)


def _words(name: str, row: dict[str, Measurement]) -> str:
    told = []
    for quantity, one in row.items():
        interval = None if one.low is None else Interval(one.low, one.high)
        told.append(f"{METRICS[quantity].title} {difference_in_words(one.value, interval)}")
    return f"{name}: {'; '.join(told)}"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m eval compare", __doc__)
    add_generation_flags(parser)
    add_flags(parser, CompareFlags, "comparison")
    args = parser.parse_args(argv)
    words = sys.argv[2:] if argv is None else argv
    command = shlex.join(["python", "-m", "eval", "compare", *words])
    flags = read_flags(CompareFlags, args)
    return run_command(lambda: _run(lambda: read_plan(args), flags, command), stopped=STOPPED)


def _run(plan_of: Callable[[], Plan], flags: CompareFlags, command: str) -> str:
    if flags.rounds < 0:
        raise ValueError(f"rounds={flags.rounds}: give 0 or more")
    check_names(flags.metrics)
    plan = plan_of()
    forms = parse_forms(plan.data.models)
    device = str(plan.flags.model.device or "auto")
    results, found = _results(plan, forms, flags, command), []
    size = plan.flags.request.resolution or SIZE
    work = Workload(size, plan.flags.request.steps or Workload.steps, flags.rounds, flags.threads, device)
    steps = [quality(plan, forms, flags), costs(forms, work) if flags.rounds else ()]
    for one in (one for part in steps for one in part):
        found.append(one)
        results.keep(found, add=False)
    text = report(found, plan)
    with atomic_write(plan.data.out / "table.md") as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")
    return text


def _results(plan: Plan, forms: Sequence[Form], flags: CompareFlags, command: str) -> ResultsFile:
    from ldm.util import pick_device

    setting = {"data": Path(plan.data.data).name, "count": len(plan.things), "seed": plan.seed}
    files = [path for form in forms for path in (*model_files(form.config, form.files),)]
    device = str(pick_device(plan.flags.model.device or "auto"))
    origin = origin_of("eval compare", setting, command, device, dict.fromkeys(files))
    return ResultsFile(flags.results, origin)
