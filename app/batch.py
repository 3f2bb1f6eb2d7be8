"""Work in portions: jobs from one image or a folder of them, each made image by image, written at once.

In a folder `circle.png` takes its prompt from `circle.txt`, and from the prompt for all where there is none.
Images are made one at a time: what is finished stays when the rest is stopped, and image k of a request is,
to the byte, what its own request gives.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.provenance import Provenance, digests, find_place, is_one_file, write_image
from checkpoints.lora.names import parse_lora
from cldm.request import Request
from ldm.image import IMAGE_SUFFIXES, read_image, write_png

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline
    from ldm.models.diffusion.sampling_run import Step

TINY_CONFIG = Path(__file__).parents[1] / "models" / "tiny.yaml"


class BadImage(ValueError):
    """One job's images cannot be used; the jobs beside it are not touched by that."""


@dataclass(frozen=True)
class GenerationJob:
    """One request and its input images, one for each control; `name` begins the names of what comes out."""

    name: str
    images: tuple[Path, ...]
    request: Request


def images_in(folder: Path) -> list[Path]:
    """The image files of `folder` in the order of their names, hidden ones left out.

    FileNotFoundError or ValueError when there are none.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: for one picture use --image")
    found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES)
    images = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not images:
        raise ValueError(f"{folder} has no pictures: looked for {' '.join(IMAGE_SUFFIXES)}")
    return images


def prompt_beside(image: Path) -> str | None:
    """The prompt in the text file of the same name, on one line; None without such a file.

    ValueError when it is empty or not UTF-8.
    """
    path = image.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        prompt = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save the prompt as UTF-8") from None
    if not prompt:
        raise ValueError(f"{path} is empty: write a prompt, or remove it to use --prompt")
    return prompt


def folder_jobs(folder: Path, ask: Callable[[str], Request], prompt: str | None) -> list[GenerationJob]:
    """A job for each image of `folder`; `ask` makes the request of a prompt.

    prompt: for images without a text file. ValueError when an image has no prompt at all.
    """
    images = images_in(folder)
    prompts = {path: prompt_beside(path) or prompt for path in images}
    if missing := [path for path in images if prompts[path] is None]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        words = f"write one into {missing[0].stem}.txt beside it, or give --prompt for all"
        raise ValueError(f"no prompt for {missing[0].name}{others}: {words}")
    stems, jobs = Counter(path.stem for path in images), []
    for path in images:
        name = path.stem if stems[path.stem] == 1 else path.name  # else a.png and a.jpg were both a_seed0.png
        request = ask(prompts[path])
        jobs.append(GenerationJob(name, (path,) * len(request.controls), request))
    return jobs


def single_requests(request: Request) -> list[Request]:
    """A request for each image of `request`; image k has the seed after k."""
    return [replace(request, seed=request.seed + k, num_samples=1) for k in range(request.num_samples)]


def load_pipeline(provenance: Provenance) -> Pipeline:
    """The model of `provenance`. Errors as `Pipeline.from_files` and `cldm.cuda_graphs.use_graphs`."""
    from cldm.cuda_graphs import use_graphs
    from cldm.pipeline import Pipeline

    asked = provenance
    if asked.cuda_graphs and asked.save_memory:
        raise ValueError("--save-memory moves the weights that --cuda-graphs has to find in place: give one")
    try:
        pipeline = Pipeline.from_files(
            asked.config or TINY_CONFIG, *asked.weights, device=asked.device, dtype=asked.dtype,
            controls=asked.branches, loras=[parse_lora(one) for one in asked.loras],
            save_memory=asked.save_memory, quantized=asked.quantized,
            annotators=None if asked.annotators is None else Path(asked.annotators),
        )  # fmt: skip
    except FileNotFoundError as error:
        if asked.config or asked.weights or asked.quantized or asked.branches or asked.loras:
            raise
        raise FileNotFoundError(
            f"the tiny model that ships with this project is not complete ({error}): "
            f"get its files again, or make them with python -m trainer.tiny"
        ) from error
    if asked.cuda_graphs:
        model = pipeline.model
        use_graphs([model.model.diffusion_model, model.control_model, *pipeline.branches.values()])
    return pipeline


@dataclass(frozen=True)
class Generated:
    """An image on disk and the request it answers; seconds by stage, empty where it lay there already."""

    path: Path
    request: Request
    seconds: dict[str, float]


class BatchRunner:
    """Makes the images of jobs; the model is loaded when the first image needs it.

    out: a folder, or a `.png` for the only image of the only job. keep_finished: what lies in the folder
    already, from the same request and provenance, is not made again. save_maps: write the control maps too.
    """

    def __init__(
        self, provenance: Provenance, out: Path, *, keep_finished: bool = False, save_maps: bool = False
    ) -> None:
        self.provenance, self._out = provenance, out
        self._keep_finished, self._save_maps = keep_finished, save_maps
        self.load_seconds = 0.0

    @cached_property
    def _pipeline(self) -> Pipeline:
        start = time.perf_counter()
        pipeline = load_pipeline(self.provenance)
        self.load_seconds = time.perf_counter() - start
        return pipeline

    def run(self, job: GenerationJob, on_step: Callable[[Step], None] | None = None) -> Iterator[Generated]:
        """The images of `job`, each written before the next is begun.

        BadImage when its inputs cannot be read or used; other errors as `load_pipeline` and `write_image`.
        """
        paths = [*job.images, self.provenance.init, self.provenance.mask]
        inputs = [None if path is None else _read(path) for path in paths]
        names = tuple(path.as_posix() for path in job.images)
        provenance = replace(self.provenance, image=names, digests=digests(paths))
        for request in single_requests(job.request):
            path, finished = self._out, None
            if not is_one_file(path):
                path, finished = find_place(path, f"{job.name}_seed{request.seed}", request, provenance)
            if finished is not None and self._keep_finished:
                yield Generated(path, finished, {})
            else:
                yield self._make(path, inputs, request, provenance, on_step)

    def _make(
        self, path: Path, inputs: list[np.ndarray | None], request: Request, provenance: Provenance,
        on_step: Callable[[Step], None] | None,
    ) -> Generated:  # fmt: skip
        pipeline = self._pipeline  # outside of `try`: a model that cannot be loaded is no image's fault
        *images, init, mask = inputs
        try:
            result = pipeline(images, request, init=init, mask=mask, on_step=on_step)
        except ValueError as error:
            raise BadImage(str(error)) from error
        if self._save_maps:
            for number, control_map in enumerate(result.maps):
                write_png(path.with_name(f"{path.stem}_map{number or ''}.png"), control_map)
        write_image(path, result.images[0], result.request, provenance)
        return Generated(path, result.request, dict(result.seconds))


def _read(path: str | Path) -> np.ndarray:
    try:
        return read_image(path)
    except (ValueError, FileNotFoundError) as error:
        raise BadImage(str(error)) from error
