"""Scores a folder of pictures, also one that this project did not make, by metrics with their intervals.

    python -m eval score outputs/pictures training/fill50k/target --metrics psnr ssim fd_tiny
    python -m eval score outputs/pictures --metrics control_f1 --maps outputs/maps --control canny

Pictures of two folders pair by name; metrics of sets compare folders that do not pair as well. Without
--metrics everything is computed for which both folders have what it takes. Networks come from
--metric-weights and are never fetched; what is absent is named with the command that fetches it, and its line
shows no number.
Metrics: {names}.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command, say
from eval.folders import Folders, read_pictures
from eval.metrics.metric import Score
from eval.metrics.registry import METRICS, check_names
from eval.metrics.weights import NETWORKS, absent
from eval.pictures import Pictures
from eval.scoring import Scorer, ScoreSettings, applicable

STOPPED = "stopped; what was computed is kept, and the same command goes on from there"
LABEL_WIDTH, DASH = 52, "–"


@dataclass(frozen=True)
class Wanted:
    """What is computed."""

    results: Path | None = flag(None, "add the numbers to this file, as rows with their origin")
    metrics: tuple[str, ...] = flag(
        (), "names, separated by spaces (default: all that can be)", metavar="NAME"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m eval score", __doc__.format(names=", ".join(METRICS)))
    kinds = Folders, Wanted, ScoreSettings
    for kind in kinds:
        add_flags(parser, kind)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(*(read_flags(kind, args) for kind in kinds)), stopped=STOPPED)


def table(scores: Sequence[Score]) -> str:
    """A line a score: label, value with its unit, interval; why where there is no value."""
    return "\n".join(map(_line, scores))


def _run(folders: Folders, wanted: Wanted, settings: ScoreSettings) -> str:
    check_names(wanted.metrics)
    if settings.batch < 1 or settings.processes < 1:
        raise ValueError(f"batch={settings.batch}, processes={settings.processes}: both must be 1 or more")
    pictures, scorer = read_pictures(folders), Scorer(settings)
    names = list(dict.fromkeys(wanted.metrics)) or applicable(pictures)
    if not names:
        raise ValueError("these pictures alone have no metric: name TRUTH, --maps or --prompts")
    for name in wanted.metrics:
        if why := scorer.unfit(pictures, name):
            raise ValueError(f"{name}: {why}")
    for warning in (*_notes(folders, pictures), *_missing(names, settings)):
        say(warning)
    scores = scorer.scores(pictures, names)
    if wanted.results:
        _keep(wanted.results, scores, folders, settings)
    return table(scores)


def _keep(path: Path, scores: Sequence[Score], folders: Folders, settings: ScoreSettings) -> None:
    from bench.origin import origin_of
    from bench.results import Measurement, ResultsFile
    from ldm.util import pick_device

    setting = {"truth": folders.truth and folders.truth.name, "control": folders.control}
    setting |= {"resize": folders.resize, "seed": settings.seed}
    command = shlex.join(["python", "-m", "eval", *sys.argv[1:]])
    origin = origin_of("eval score", setting, command, pick_device(settings.device).type)
    there = [one for one in scores if one.value is not None]
    rows = [(one.label, one.value, one.unit, one.n, one.low, one.high) for one in there]
    ResultsFile(path, origin).keep([Measurement(folders.pictures.name, *row) for row in rows], add=False)


def _missing(names: Sequence[str], settings: ScoreSettings) -> list[str]:
    """One line for all networks that are not there."""
    networks = [METRICS[name].feature.network for name in names]
    told = absent([NETWORKS[one] for one in dict.fromkeys(networks) if one], settings.metric_weights)
    return [told] if told else []


def _notes(folders: Folders, pictures: Pictures) -> list[str]:
    found = pictures.warnings()
    if pictures.skipped:
        found.append(f"{pictures.skipped:,} corrupt pictures were left out")
    if folders.resize and pictures.resized:
        found.append(f"{pictures.resized:,} pictures were resized to their truth's size")
    return found


def _line(score: Score) -> str:
    if score.value is None:
        return f"{score.label:<{LABEL_WIDTH}}{DASH:>12}  {score.why}"
    interval = "" if score.low is None else f"  [{score.low:.4g}, {score.high:.4g}]"
    count = "" if "n = " in score.label else f"  n = {score.n:,}"
    return f"{score.label:<{LABEL_WIDTH}}{f'{score.value:.4g} {score.unit}'.strip():>12}{interval}{count}"
