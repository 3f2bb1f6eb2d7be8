"""Runs of a float model that show quantization what its networks see: pictures, prompts, hooks.

`quantize` knows no ControlNet; the names of its networks, how a picture is asked for, and where channels can
be rescaled (`quantize.calibration.smoothquant`) are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from app.batch import images_in, prompt_beside
from checkpoints.checkpoint import open_checkpoint
from cldm.controls import control_of_file, ready_detectors
from cldm.lite import Block
from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from ldm.config import read_config
from ldm.image import image_to_model, read_image
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from quantize.calibration.ranges import watch_inputs
from quantize.calibration.smoothquant import AbsMaxObserver, SmoothingPair, smooth_
from quantize.selection import Plan
from quantize.timesteps import TimestepGroups, follow_timesteps

BRANCH, UNET = "control_model", "model.diffusion_model"
# Networks that take a timestep -> the name of that argument.
TIMED = {BRANCH: "timesteps", UNET: "timesteps"}
# Part of a model -> the network whose answers are compared.
NETWORKS = {"control_model": BRANCH, "model": UNET, "first_stage_model": "first_stage_model.decoder"}
TEXT_PART = "cond_stage_model"
DEFAULT_CONTROL = "scribble"
# Module -> what makes channels in it, and the layers that read just these. LayerNorm and the GroupNorm of a
# transformer feed Linear layers and 1x1 convolutions directly. Attention is linear in its values, and GEGLU
# in the half that is gated, which comes first. ResBlocks and the autoencoder have no such place: SiLU stands
# between their norms and their convolutions.
SMOOTHED = {
    BasicTransformerBlock: {
        "norm1": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "norm2": ("attn2.to_q",),
        "norm3": ("ff.net.0.proj",),
        "attn1.to_v": ("attn1.to_out.0",),
        "attn2.to_v": ("attn2.to_out.0",),
        "ff.net.0.proj": ("ff.net.2",),
    },
    SpatialTransformer: {"norm": ("proj_in",)},
    Block: {"norm": ("mlp.0",)},
}


@dataclass(frozen=True)
class Example:
    """An image and the prompt to run the model with."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class Runs:
    """What to run the float model on. control: the name of the kind; steps: of each run."""

    examples: Sequence[Example]
    control: str = DEFAULT_CONTROL
    steps: int = 20

    @property
    def prompts(self) -> list[str]:
        """One an example."""
        return [example.prompt for example in self.examples]

    def play(self, pipeline: Pipeline) -> None:
        """Make a picture of each example, and encode it again; nothing is kept."""
        # Without a detector that is ready the pictures are taken as ready-made maps.
        detector = next(iter(ready_detectors(self.control)), None)
        steering = ControlInput(self.control, detector=detector, preprocess=detector is not None)
        model = pipeline.model
        for seed, example in enumerate(tqdm(self.examples, unit="picture", disable=None)):
            request = Request(example.prompt, controls=(steering,), seed=seed, steps=self.steps)
            made = pipeline(read_image(example.image), request)
            with torch.inference_mode():  # the encoder: no request without an initial picture needs it
                model.encode_first_stage(image_to_model(made.images[0]).to(model.device))


@dataclass(frozen=True)
class FloatModel:
    """What is quantized. weights: its files; groups: of timesteps; runs: of calibration, None for none."""

    pipeline: Pipeline
    weights: list[Path]
    plan: Plan
    groups: TimestepGroups
    runs: Runs | None


def examples_in(folder: Path, config: Path) -> list[Example]:
    """Pictures of a folder with the prompts that calibration runs them with.

    A picture's prompt is in the text file of its name. The others share the prompts that the yaml lists under
    `calibration:`, in turns; where that lists more prompts than there are such pictures, pictures come again,
    so that each prompt is seen. Without such a list a picture's name is its prompt. Errors as
    `app.batch.images_in` and `prompt_beside`.
    """
    pictures = images_in(folder)
    beside = {path: prompt_beside(path) for path in pictures}
    told = [Example(path, prompt) for path, prompt in beside.items() if prompt]
    rest = [path for path, prompt in beside.items() if not prompt]
    listed = [str(prompt) for prompt in read_config(config).get("calibration", [])]
    if not listed or not rest:
        return told + [Example(path, path.stem.replace("_", " ")) for path in rest]
    count = max(len(rest), len(listed))
    pairs = zip(islice(cycle(rest), count), islice(cycle(listed), count), strict=True)
    return told + [Example(path, prompt) for path, prompt in pairs]


def smoothing_pairs(model: nn.Module) -> list[SmoothingPair]:
    """The pairs of all networks in `model`, as far as their layers are plain ones."""
    pairs = []
    for name, module in model.named_modules():
        at = f"{name}." if name else ""
        for source, readers in SMOOTHED.get(type(module), {}).items():
            width = module.get_submodule(readers[0]).weight.shape[1]
            pairs.append(SmoothingPair(at + source, tuple(at + reader for reader in readers), outputs=width))
    return pairs


def smooth(source: FloatModel) -> int:
    """Move outliers of inputs into weights wherever our networks have a place for it; how many places.

    The float model changes, what it computes does not: calibrate after this.
    """
    model = source.pipeline.model
    pairs, peaks = smoothing_pairs(model), AbsMaxObserver(model)
    with watch_inputs(model, [pair.layers[0] for pair in pairs], peaks.see):
        source.runs.play(source.pipeline)
    return smooth_(model, pairs, peaks.by_name)


def source_files(config: Path, given: tuple[Path, ...], out: Path | None) -> list[Path]:
    """The weights that go in, the yaml's where none are given; ValueError for quantized ones and `out`."""
    weights = list(given) or [config.parent / name for name in read_config(config).get("weights", [])]
    for path in weights:
        if open_checkpoint(path).is_quantized:
            raise ValueError(f"{path} is quantized already: start from the float weights")
        if out and path.resolve() == out.resolve():
            raise ValueError(f"--out {out} is the file that goes in: choose another name")
    return weights


def control_of(weights: Sequence[Path]) -> str:
    """The control that these files steer by, as far as their names tell."""
    return next(filter(None, map(control_of_file, weights)), DEFAULT_CONTROL)


@contextmanager
def follow_model(model: nn.Module, groups: TimestepGroups) -> Iterator[None]:
    """Let calls of the networks that take a timestep run inside its group."""
    with ExitStack() as stack:
        for name, argument in TIMED.items():
            for handle in follow_timesteps(model.get_submodule(name), groups, argument):
                stack.callback(handle.remove)
        yield
