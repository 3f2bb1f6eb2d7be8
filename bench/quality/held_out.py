"""Pictures of scenes that no training has seen, made once, and how good they are.

All rows of a table make the same pictures from the same noise (`eval.fill50k`). Pictures lie in the folder of
the run, under a name that changes with all that they depend on, so that a run which was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from bench.harness import PERCENT, TINY, BenchFlags, Column
from bench.results import Measurement
from common.atomic import atomic_write
from common.flags import flag

if TYPE_CHECKING:
    import numpy as np

    from cldm.pipeline import Pipeline

    Pictures = Sequence[np.ndarray]

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text("utf-8"))
LOW_PERCENTILE = 5  # what all but one in twenty reach
KEY_DIGITS = 16  # of a hash: 64 bits
TRUTH = {
    "followed": "followed_share", "colours": "coloured_share", "median IoU": "median_iou",
    "PSNR to truth": "median_psnr", "SSIM to truth": "median_ssim",
}  # fmt: skip
FOLLOWED, COLOURS = (Column(name, name, "{:.1f} %", PERCENT) for name in ("followed", "colours"))


@dataclass(frozen=True)
class HeldOutFlags(BenchFlags):
    """Which model makes how many pictures, and where they lie."""

    LOWEST: ClassVar[Mapping[str, int]] = {"seed": 0}
    SHARED: ClassVar[Sequence[str]] = ("config", "count", "size", "seed")

    config: Path = flag(TINY, "yaml of the model")
    run: Path = flag(Path("runs/bench"), "of what is made", metavar="DIR")
    count: int = flag(200, "held-out scenes")  # one is half a point
    size: int = flag(128, "side in pixels")  # what the tiny model was trained at
    seed: int = flag(0, "of scenes and noise")

    def model_folder(self) -> Path:
        """A folder of the run, another one for other weights."""
        folder = self.run / self.key()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def key(self, *more: object) -> str:
        """Changes with the yaml, the weights that it lists, and `more`, files by what is in them."""
        from ldm.config import read_config

        settings = read_config(self.config)
        weights = [self.config.parent / name for name in settings.get("weights", [])]
        parts = json.dumps([str(settings), *weights, *more], default=content)
        return hashlib.sha256(parts.encode()).hexdigest()[:KEY_DIGITS]

    def pictures(
        self, model: object, pipeline: Callable[[], Pipeline], fields: Mapping[str, Any] | None = None
    ) -> tuple[Pictures, float]:
        """A picture for each scene, and the seconds that one took when it was made.

        model: what the key is made of, beside yaml and weights. fields: of the request.
        """
        import numpy as np

        fields = dict(fields or {})
        path = self.run / f"{self.key(model, self.count, self.seed, self.size, fields)}.npz"
        if not path.is_file():
            pictures, seconds = self._make(pipeline(), fields)
            with atomic_write(path) as partial_path, partial_path.open("xb") as file:
                np.savez_compressed(file, pictures=np.stack(pictures), seconds=seconds)
        with np.load(path) as held:
            return list(held["pictures"]), float(held["seconds"])

    def _make(self, pipeline: Pipeline, fields: dict[str, Any]) -> tuple[Pictures, float]:
        from eval.fill50k import Settings, generate, held_out_scenes
        from scenes.shape_scenes import render

        scenes = held_out_scenes(self.count, self.seed)
        sources = [render(scene, self.size)[0] for scene in scenes]
        own = {name: fields.pop(name) for name in ("steps", "sampler") if name in fields}
        settings = Settings(seed=self.seed, size=self.size, **own)
        saving = SimpleNamespace(generate=partial(pipeline.generate, **fields))
        start = time.perf_counter()
        pictures = generate(saving, scenes, sources, settings)
        return pictures, (time.perf_counter() - start) / self.count

    def scores(self, name: str, pictures: Pictures, **to: Pictures) -> Iterator[Measurement]:
        """How like they are to the truth, and to pictures of the same noise by what those are called."""
        import numpy as np

        from eval.fill50k import held_out_scenes, score
        from eval.metrics.likeness import psnr, ssim

        summary = score(pictures, held_out_scenes(self.count, self.seed)).summary()
        for quantity, key in TRUTH.items():
            yield Measurement(name, quantity, summary[key], "dB" if "PSNR" in quantity else "", self.count)
        for other, expected in to.items():
            for measure, unit, like in (("PSNR", "dB", psnr), ("SSIM", "", ssim)):
                values, quantity = like(pictures, expected), f"{measure} to {other}"
                low = float(np.percentile(values, LOW_PERCENTILE, method="lower"))
                yield Measurement(name, quantity, float(np.median(values)), unit, self.count)
                yield Measurement(name, f"{quantity}, low", low, unit, self.count)


def content(path: Path) -> str:
    """Changes with what is in the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_stem(name: str) -> str:
    """The name of a row as that of a file."""
    return re.sub(r"\W+", "-", name)
