"""Rows of `bench.quality.savings`: which ways of saving steps there are, their pictures, and what they
compute.

The pictures of a row are made once and lie in the folder of the run, under a name that changes with all that
they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cldm.cldm import ControlLDM
    from cldm.pipeline import Pipeline

    Pictures = list[np.ndarray]

WHOLE, BETWEEN, BRANCH = "whole", "between", "branch"  # passes of the U-Net, and of the branch
UNSAVED, LONG = "ddim 20", "ddim 50"  # what the others are held against
SMALLEST = 64  # pixels a side: one position at the deepest resolution
HALF_REUSED = {"reuse_every": 2, "reuse_cut": "outer-2"}
# Fields of the request, by row.
ROWS: dict[str, dict[str, Any]] = {
    LONG: {"steps": 50},
    UNSAVED: {},
    "guidance to 0.8": {"guidance_end": 0.8},
    "guidance to 0.6": {"guidance_end": 0.6},
    "guidance to 0.4": {"guidance_end": 0.4},
    "guidance from 0.2": {"guidance_start": 0.2},
    "reuse 2, outer-1": {"reuse_every": 2, "reuse_cut": "outer-1"},
    "reuse 2, outer-2": HALF_REUSED,
    "reuse 2, outer-3": {"reuse_every": 2, "reuse_cut": "outer-3"},
    "reuse 2, decoder": {"reuse_every": 2, "reuse_cut": "decoder"},
    "reuse 3, outer-2": {"reuse_every": 3, "reuse_cut": "outer-2"},
    "reuse 5, outer-2": {"reuse_every": 5, "reuse_cut": "outer-2"},
    "control 2": {"control_every": 2},
    "control 5": {"control_every": 5},
    "unipc 12": {"sampler": "unipc", "steps": 12},
    "unipc 10": {"sampler": "unipc", "steps": 10},
    "unipc 8": {"sampler": "unipc", "steps": 8},
    "dpmpp_2m 12": {"sampler": "dpmpp_2m", "steps": 12},
    "dpmpp_2m 10": {"sampler": "dpmpp_2m", "steps": 10},
    "dpmpp_2m 8": {"sampler": "dpmpp_2m", "steps": 8},
    "ddim 20, guidance to 0.6, reuse 2": {"guidance_end": 0.6, **HALF_REUSED},
    "ddim 10": {"steps": 10},
    "unipc 10, guidance to 0.6": {"sampler": "unipc", "steps": 10, "guidance_end": 0.6},
    "unipc 10, control 2": {"sampler": "unipc", "steps": 10, "control_every": 2},
    "unipc 10, reuse 2": {"sampler": "unipc", "steps": 10, **HALF_REUSED},
    "unipc 10, guidance to 0.6, control 2": {
        "sampler": "unipc", "steps": 10, "guidance_end": 0.6, "control_every": 2,
    },
    "unipc 10, guidance to 0.6, reuse 2": {
        "sampler": "unipc", "steps": 10, "guidance_end": 0.6, **HALF_REUSED,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What all rows share: the model's yaml, the folder of the run, and the pictures that are asked for."""

    config: Path
    run: Path
    count: int = 200
    seed: int = 0
    size: int = 128

    def path(self, fields: dict[str, Any]) -> Path:
        """Where the pictures of a row lie: another file for other weights, settings or fields."""
        from ldm.config import read_config

        settings = read_config(self.config)
        weights = [(self.config.parent / name).read_bytes() for name in settings.get("weights", [])]
        parts = [str(settings), self.count, self.seed, self.size, fields]
        digests = [hashlib.sha256(content).hexdigest() for content in weights]
        key = hashlib.sha256(json.dumps([*parts, *digests]).encode()).hexdigest()
        return self.run / f"{key[:16]}.npz"

    def made(self, pipeline: Pipeline, fields: dict[str, Any]) -> Pictures:
        """The pictures of a row, made unless they are there."""
        import numpy as np

        path = self.path(fields)
        if not path.is_file():
            part = path.with_suffix(".partial.npz")
            np.savez_compressed(part, pictures=np.stack(self._make(pipeline, fields)))
            part.replace(path)
        with np.load(path) as held:
            return list(held["pictures"])

    def _make(self, pipeline: Pipeline, fields: dict[str, Any]) -> Pictures:
        from eval.fill50k import Settings, generate, held_out_scenes
        from scenes.shape_scenes import render

        scenes = held_out_scenes(self.count, self.seed)
        sources = [render(scene, self.size)[0] for scene in scenes]
        settings = Settings(
            self.seed, fields.get("steps", Settings.steps), fields.get("sampler", Settings.sampler)
        )
        rest = {name: value for name, value in fields.items() if name not in ("steps", "sampler")}
        saving = SimpleNamespace(generate=partial(pipeline.generate, **rest))
        return generate(saving, scenes, sources, settings)


def passes_of(pipeline: Pipeline, fields: Mapping[str, Any]) -> Counter[str]:
    """Passes of one picture by kind, counted while a small one is made: any model makes as many.

    Control is in both passes of a step, as in published models; the tiny model's own guidance differs.
    """
    import torch

    with passes_counted(pipeline.model) as passes:
        pipeline.generate(
            ["-"], torch.zeros(1, 3, SMALLEST, SMALLEST), seed=0, guided_control=False, **fields
        )
    return passes


@contextmanager
def passes_counted(model: ControlLDM) -> Iterator[Counter[str]]:
    """Passes inside by kind: of the whole U-Net, of the part that steps between compute, of the branch.

    Each row of a call is a pass: guidance may make both of a step in one call.
    """
    passes, unet = Counter({WHOLE: 0, BETWEEN: 0, BRANCH: 0}), model.model.diffusion_model

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


def likeness(pictures: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, float]:
    """Medians over the pairs, and the PSNR that all but one in twenty reach."""
    import numpy as np

    from eval.paired import psnr, ssim

    ratios = psnr(pictures, targets)
    return {
        "psnr": float(np.median(ratios)),
        "psnr_low": float(np.percentile(ratios, 5, method="lower")),
        "ssim": float(np.median(ssim(pictures, targets))),
    }
