"""Seconds of each part of a picture: whole passes of the U-Net, those of steps between, the branch, the rest.

    python -m bench.quality.savings_parts --results outputs/parts.jsonl
    python -m bench.quality.savings_parts --quantized sd15-int8.safetensors --picture "unipc 10, guidance \
        to 0.6"
    python -m bench.quality.savings_parts --peer --results outputs/diffusers.jsonl

One pass is of one picture with one prompt; guidance takes two, which the pipeline makes in one call where
both are steered alike: sums of two passes are upper bounds there. Each round takes every part once, one
after the other, so that whatever else the machine does meets all of them. Weights are random unless given:
time does not depend on them. --peer measures diffusers' step of the exact Stable Diffusion 1.5 beside them,
in float32 and for both prompts at once, as its pipeline makes them. --picture makes whole pictures of rows
of `bench.quality.savings` too, to hold the sum of parts against. Needs about 6 GB, 11 with --peer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from bench.harness import ROUNDS, SD15, Bench, BenchFlags, Column, chosen, table_of
from bench.inputs import LATENT_FACTOR, Inputs
from bench.processes import Run, interleaved
from bench.quality.savings import BRANCH, PEER, SAVING_ROWS, WHOLE
from bench.results import Measurement
from common.flags import flag

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

PROMPTS = ["a red circle on a blue ground", "blurry, low quality"]  # any two of one chunk
PICTURE = "whole picture: "  # before the name of a row that is made whole
STAGES = ("encode", "sample", "decode")  # as the pipeline calls them
COLUMNS = (
    Column("s", "wall"),
    Column("lowest to highest", "wall", "{low:.2f} to {high:.2f}"),
    *(Column(f"{stage}, s", stage, "{:.1f}") for stage in STAGES),
)


@dataclass(frozen=True)
class PartFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config", "quantized", "size")

    config: Path = flag(SD15, "yaml of the model")
    weights: tuple[Path, ...] = flag((), "float weights (default: random)", metavar="FILE")
    quantized: Path | None = flag(None, "of python -m quantize, in place of --weights", metavar="FILE")
    size: int = flag(512, "side of the picture, pixels")
    rounds: int = flag(3, ROUNDS)
    peer: bool = flag(False, "measure diffusers' step too")
    picture: tuple[str, ...] = flag((), "of bench.quality.savings, made whole too", metavar="ROW")


def load(flags: PartFlags) -> ControlLDM:
    """The model to be measured; random weights where no file is given."""
    from cldm.compressed.quantized import load_quantized_model
    from cldm.model import create_model, load_model

    if flags.quantized:
        return load_quantized_model(flags.config, flags.quantized)
    model = load_model(flags.config, *flags.weights) if flags.weights else create_model(flags.config)
    return model.eval().requires_grad_(False)


def parts(model: ControlLDM, size: int) -> dict[str, Run]:
    """What computes each part, by name: the passes that steps are made of, then what a picture needs once."""
    from ldm.modules.feature_cache import CACHE_POINTS

    unet, branch, inputs = model.model.diffusion_model, model.control_model, Inputs.random(model, size, 1)
    x, t, text = inputs.x, inputs.t, inputs.text
    features = branch.encode_hint(inputs.hint)
    residuals = branch(x, features, t, text, encoded=True)

    def between(name: str) -> Run:
        cache = CACHE_POINTS[name].make_cache(len(unet.input_blocks))
        unet(x, t, text, control=residuals, cache=cache)  # a whole pass fills it
        return lambda: unet(x, t, text, control=residuals, cache=cache)

    return {
        WHOLE: lambda: unet(x, t, text, control=residuals),
        **{name: between(name) for name in CACHE_POINTS},
        BRANCH: lambda: branch(x, features, t, text, encoded=True),
        "hint": lambda: branch.encode_hint(inputs.hint),
        "text": lambda: model.get_learned_conditioning(PROMPTS),
        "decode": lambda: model.decode_first_stage(x),
    }


def peer_step(model: ControlLDM, size: int) -> Run:
    """A denoising step of diffusers for two prompts: U-Net and ControlNet as they come, random weights."""
    import diffusers

    from bench.step.diffusers import Networks

    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=size // LATENT_FACTOR)
    networks = Networks(unet, diffusers.ControlNetModel.from_unet(unet))
    inputs = Inputs.random(model, size, 2)  # both prompts at once, as its pipeline has them
    return lambda: networks.step(inputs)


def picture_seconds(model: ControlLDM, size: int, name: str) -> dict[str, float]:
    """Seconds by stage of one whole picture of `size` pixels, made as the row `name` says."""
    import numpy as np

    from cldm.pipeline import Pipeline
    from cldm.request import ControlInput, Request

    controls = (ControlInput("none", preprocess=False),)
    request = Request(*PROMPTS, controls, resolution=size, **SAVING_ROWS[name])
    return dict(Pipeline(model)(np.zeros((size, size, 3), np.uint8), request).seconds)


def measure(flags: PartFlags) -> Iterator[Measurement]:
    """The parts in turns, then the whole pictures."""
    names = chosen(flags.picture, SAVING_ROWS, "row") if flags.picture else []
    with torch.inference_mode():
        model = load(flags)
        runs = parts(model, flags.size)
        if flags.peer:
            runs[PEER] = peer_step(model, flags.size)
        for name, taken in interleaved(runs, flags.rounds).items():
            yield Measurement.of(name, "wall", "s", [cost.wall for cost in taken])
        for name in names:
            seconds = picture_seconds(model, flags.size, name)
            yield Measurement.of(f"{PICTURE}{name}", "wall", "s", [sum(seconds.values())])
            for stage in STAGES:
                yield Measurement(f"{PICTURE}{name}", stage, seconds[stage], "s")


table = table_of(COLUMNS, "part")
main = Bench("bench.quality.savings_parts", __doc__, PartFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
