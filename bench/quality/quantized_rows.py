"""Rows of `bench.quality.quantized_quality`: which there are, and how each is made and measured.

A finished row is a JSON file with a key of all that it depends on; when that changes, it is made again.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.shell import INTERRUPTED

if TYPE_CHECKING:
    import numpy as np

    from cldm.pipeline import Pipeline

STATIC = ("--scheme", "int8_static", "--calibrate", "test_imgs")
INT4 = ("--scheme", "int4_group")
PLANNED = (*INT4, "--calibrate", "test_imgs", "--sensitivity", "{run}/int4-noise.json")
# Rows by name: the flags of one or more commands, of which the last writes the file. {run}: the run's folder.
SCHEMES = {
    "int8_weight": (("--scheme", "int8_weight"),),
    "int8_dynamic": (("--scheme", "int8_dynamic"),),
    "int8_static": (STATIC,),
    "int8_static, decoder": ((*STATIC, "--decoder"),),
    "int8_static, compact": ((*STATIC, "--compact"),),
    "int4_group": (INT4,),
    "int4_group, plan": (
        (*PLANNED, "--budget-db", "26", "--plan-out", "{run}/int4-plan.json"),
        ("--plan", "{run}/int4-plan.json"),
    ),
}
SWITCHES = {
    "int8_static, clip max": ((*STATIC, "--clip", "max"),),
    "int8_static, balance": ((*STATIC, "--balance"),),
    "int8_static, bias correction": ((*STATIC, "--bias-correction"),),
    "int4_group, clip max": ((*INT4, "--clip", "max"),),
    "int4_group, balance": ((*INT4, "--balance", "--calibrate", "test_imgs"),),
    "int4_group, bias correction": ((*INT4, "--bias-correction", "--calibrate", "test_imgs"),),
}
ROWS: Mapping[str, Sequence[Sequence[str]]] = {**SCHEMES, **SWITCHES}
LOW_PERCENTILE = 5

Row = dict[str, Any]  # numbers of a row by name


@dataclass(frozen=True)
class Task:
    """What all rows share: the model, the folder of the run, and the pictures that are asked for."""

    config: Path
    run: Path
    count: int
    seed: int
    size: int

    @property
    def weights(self) -> list[Path]:
        """The float files that the yaml lists."""
        from ldm.config import read_config

        return [self.config.parent / name for name in read_config(self.config).get("weights", [])]

    def key(self, *more: object) -> str:
        """Changes with the yaml, the weights, the pictures asked for, and `more`."""
        from ldm.config import read_config

        parts = [
            str(read_config(self.config)),
            self.count,
            self.seed,
            self.size,
            *map(_content, self.weights),
        ]
        return hashlib.sha256(json.dumps([*parts, *more], default=_content).encode()).hexdigest()[:16]

    def pictures(self, pipeline: Pipeline) -> tuple[list[np.ndarray], float]:
        """A picture for each scene, and the seconds that one took."""
        from eval.fill50k import Settings, generate, held_out_scenes
        from scenes.shape_scenes import render

        scenes = held_out_scenes(self.count, self.seed)
        sources = [render(scene, self.size)[0] for scene in scenes]
        start = time.perf_counter()
        made = generate(pipeline, scenes, sources, Settings(seed=self.seed, size=self.size))
        return made, (time.perf_counter() - start) / self.count


def full_precision(task: Task) -> tuple[Row, list[np.ndarray]]:
    """The float model's row and its pictures, made once."""
    import numpy as np

    from cldm.pipeline import Pipeline

    key = task.key()
    stored, cached = task.run / f"full-{key}.npz", _finished(task.run / "full.json", key)
    if cached and stored.is_file():
        with np.load(stored) as held:
            return cached, list(held["pictures"])
    pipeline = Pipeline.from_files(task.config, dtype="fp32")
    pictures, seconds = task.pictures(pipeline)
    size = sum(tensor.nbytes for tensor in pipeline.model.state_dict().values())
    np.savez_compressed(stored, pictures=np.stack(pictures))
    row = {"bytes": size, "seconds": seconds, **_truth(task, pictures)}
    return _finish(task.run / "full.json", key, row), pictures


def scheme_row(task: Task, name: str, expected: Sequence[np.ndarray]) -> Row:
    """The numbers of a row of `ROWS`, its file made first; those that lie there if nothing has changed."""
    stem = _stem(name)
    report, key = task.run / f"{stem}.json", task.key(ROWS[name])
    if cached := _finished(report, key):
        return cached
    out = task.run / f"{stem}.safetensors"
    for flags in ROWS[name]:
        _quantize(task, [flag.format(run=task.run) for flag in flags], out)
    return _finish(report, key, _measure(task, out, expected))


def file_row(task: Task, name: str, path: Path, expected: Sequence[np.ndarray]) -> Row:
    """The numbers of a file, quantized or pruned or both."""
    report, key = task.run / f"file-{_stem(name)}.json", task.key(path)
    return _finished(report, key) or _finish(report, key, _measure(task, path, expected))


def _quantize(task: Task, flags: Sequence[str], out: Path) -> None:
    import tools.compress.quantize

    target = [] if "--plan-out" in flags else ["--out", str(out)]
    code = tools.compress.quantize.main([str(task.config), *flags, *target])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"python -m quantize {' '.join(flags)} ended with code {code}")


def _measure(task: Task, path: Path, expected: Sequence[np.ndarray]) -> Row:
    import numpy as np

    from cldm.pipeline import Pipeline
    from eval.paired import psnr, ssim
    from quantize.files.read import read_content

    try:
        read_content(path)
        pipeline = Pipeline.from_files(task.config, quantized=path)
    except ValueError:  # not quantized: pruned
        pipeline = Pipeline.from_files(task.config, path, dtype="fp32")
    pictures, seconds = task.pictures(pipeline)
    row: Row = {"bytes": path.stat().st_size, "seconds": seconds}
    for name, values in (("psnr", psnr(pictures, expected)), ("ssim", ssim(pictures, expected))):
        row[name] = float(np.median(values))
        row[f"{name}_low"] = float(np.percentile(values, LOW_PERCENTILE, method="lower"))
    return row | _truth(task, pictures)


def _truth(task: Task, pictures: Sequence[np.ndarray]) -> Row:
    from eval.fill50k import held_out_scenes, score

    return score(pictures, held_out_scenes(task.count, task.seed)).summary()


def _stem(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _finished(report: Path, key: str) -> Row | None:
    if not report.is_file():
        return None
    found = json.loads(report.read_text())
    return found["row"] if found["key"] == key else None


def _finish(report: Path, key: str, row: Row) -> Row:
    part = report.with_suffix(".partial")
    part.write_text(json.dumps({"key": key, "row": row}, indent=1))
    part.replace(report)
    return row
