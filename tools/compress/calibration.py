"""Runs of a float model that show quantization what its networks see: pictures, prompts, hooks.

`quantize` knows no ControlNet; the names of its networks, and how a picture is asked for, are here.
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
from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from ldm.config import read_config
from ldm.image import image_to_model, read_image
from quantize.selection import Plan
from quantize.timesteps import TimestepGroups, follow_timesteps

BRANCH, UNET = "control_model", "model.diffusion_model"
# Networks that take a timestep -> the name of that argument.
TIMED = {BRANCH: "timesteps", UNET: "timesteps"}
# Part of a model -> the network whose answers are compared.
NETWORKS = {"control_model": BRANCH, "model": UNET, "first_stage_model": "first_stage_model.decoder"}
TEXT_PART = "cond_stage_model"
DEFAULT_CONTROL = "scribble"


@dataclass(frozen=True)
class Example:
    """An image and the prompt to run the model with."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class Runs:
    """What to run the float model on."""

    examples: Sequence[Example]
    control: str = DEFAULT_CONTROL  # the name of its kind
    steps: int = 20  # of each run

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
    """What is quantized."""

    pipeline: Pipeline
    weights: list[Path]  # the files that it came from
    plan: Plan
    groups: TimestepGroups
    runs: Runs | None  # of calibration


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
